"""What a learner meets in the notebooks."""
