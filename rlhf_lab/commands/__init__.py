"""One file for each command of `rlhf-lab`."""
