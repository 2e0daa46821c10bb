"""Evaluate a trained run: the same as the command rlloss-evaluate."""

from agents.command_line import evaluate_main

if __name__ == "__main__":
    evaluate_main()
