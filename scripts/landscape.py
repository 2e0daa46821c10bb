"""Show how losses behave: the same as the command rlloss-landscape."""

from agents.start import landscape

if __name__ == "__main__":
    landscape()
