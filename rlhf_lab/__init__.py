"""rlhf_lab: learn, test and run preference optimisation of language models."""

from rlhf_lab.common.threads import set_thread_defaults

__version__ = "0.1.0"

# Here, because whatever of the package imports torch imports this first: commands, studies, and worker processes.
set_thread_defaults()
