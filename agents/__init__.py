"""Reinforcement-learning agents on modular losses, trained as populations.

Read `dqn.py` for an agent and `training.py` for the loop.
"""
