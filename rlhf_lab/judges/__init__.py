"""Who says which response is better: gold, trained, served; and how right each one is."""
