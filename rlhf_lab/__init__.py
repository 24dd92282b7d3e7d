"""rlhf_lab: learn, test and run preference optimisation of language models."""

__version__ = "0.1.0"
