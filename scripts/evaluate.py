"""Evaluate a trained run: the same as the command rlloss-evaluate."""

from agents.start import evaluate

if __name__ == "__main__":
    evaluate()
