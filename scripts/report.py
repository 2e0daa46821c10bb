"""Compare runs: the same as the command rlloss-report."""

from agents.start import report

if __name__ == "__main__":
    report()
