"""Studies in worlds where every value can be computed."""
