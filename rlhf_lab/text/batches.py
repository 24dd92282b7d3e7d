"""From token ids to batches: one prompt and its responses are one example, whatever the task.

SFT and scoring have one response an example, preference training two (chosen, rejected), VPO with separate
calibration responses three. So one layout, one engine and one loop serve all of them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A prompt with its K >= 1 responses as token ids; `row` is the record's number in its source, for messages.

    Responses carry their EOS already (or none, if they were cut); the prompt carries its BOS, if the model has one.
    Preference examples hold (chosen, rejected) or (chosen, rejected, calibration), in this order.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    row: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that are run through the model: the prompt once, and each response."""
        return len(self.prompt) + sum(map(len, self.responses))
