"""Studies: questions about the methods, answered in the exact worlds with intervals (`rlhf-lab study NAME`)."""
