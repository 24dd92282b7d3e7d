"""An example: one prompt with its responses as token ids, whatever the task."""

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
