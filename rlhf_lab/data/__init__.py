"""From sources to examples: records of text, checked and tokenised, and the docstring corpus."""
