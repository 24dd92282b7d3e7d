"""Worlds in which everything is known exactly: bandits, and token trees in `trees`."""
