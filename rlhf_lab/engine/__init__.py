"""What runs a model: batches, packed attention, log-probs, decoding, sampling, here or on a server."""
