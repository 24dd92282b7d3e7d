"""What the seeds of a text study share, so that nobody reads their intervals as those of independent worlds."""

# Documents of the shipped corpus whose prompts are short enough: training documents are drawn from the first pool, and
# every seed's held-out documents are a block of the second.
TRAINING_POOL, HELD_OUT_POOL = 480, 479


def shared_share(documents: int) -> float:
    """The share of its training documents that a seed shares, on average, with another: documents / TRAINING_POOL.

    documents: how many a seed draws, without replacement. Each of them is in the other seed's draw with this chance.
    """
    return min(1.0, documents / TRAINING_POOL)


def sharing_notes(seeds: int, documents: int, held_out: int) -> list[str]:
    """What `seeds` seeds of so many training and held-out documents share, in two sentences."""
    return [
        f"intervals over these {seeds} seeds are narrower than they look: two seeds share on average "
        f"{shared_share(documents):.0%} of their {documents} training documents, which come from one pool of "
        f"{TRAINING_POOL}, and all seeds start at the same SFT model",
        f"each seed has {held_out} held-out documents of its own, out of one pool of {HELD_OUT_POOL}",
    ]
