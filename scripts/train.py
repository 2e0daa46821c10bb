"""Train an agent: the same as the command rlloss-train."""

from agents.command_line import train_main

if __name__ == "__main__":
    train_main()
