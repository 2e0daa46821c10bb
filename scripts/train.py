"""Train an agent: the same as the command rlloss-train."""

from agents.start import train

if __name__ == "__main__":
    train()
