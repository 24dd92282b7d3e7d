"""Which token earned the reward."""
