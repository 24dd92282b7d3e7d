"""Studies of the small model on real summaries."""
