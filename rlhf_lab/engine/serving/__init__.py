"""A completions server in place of the model in this process."""
