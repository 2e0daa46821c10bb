"""What rlloss adds to Hydra. Hydra imports every module here at each start, so none imports torch at its top."""
