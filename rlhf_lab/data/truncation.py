"""The truncation rule, on token ids.

Nothing is cut that fits. Otherwise the prompt's start goes first, down to half of `max_length`, then the responses'
ends. A cut response has no EOS; a cut prompt keeps its BOS and its end. A prompt that leaves no room for a response is
cut only where that was asked for: `Limits.long_prompts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlhf_lab.common.words import counted
from rlhf_lab.data.encoding import Ids
from rlhf_lab.data.examples import Example
from rlhf_lab.data.problems import Problem, TokenError

LongPrompts = Literal["refuse", "truncate", "drop"]
LONG = "fills the length"  # the kind of problem that a long prompt is


@dataclass(frozen=True)
class Limits:
    """The truncation rule's numbers, in tokens: prompt plus any one response; prompt alone; response alone.

    long_prompts: what becomes of a prompt of more than max_prompt_length tokens or, without that, of max_length or
    more, which would leave no room for a response. "refuse": an error. "truncate": it keeps BOS and its end, by the
    rule. "drop": its row is left out and counted. None: "truncate" if max_prompt_length is given, else "refuse".
    """

    max_length: int
    max_prompt_length: int | None = None
    max_response_length: int | None = None
    long_prompts: LongPrompts | None = None

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length}: a prompt and a response need at least 2 tokens")
        for name in ("max_prompt_length", "max_response_length"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < self.max_length:
                raise ValueError(f"{name}={value} must be at least 1 and below max_length={self.max_length}")
        if self.long_prompts not in (None, *get_args(LongPrompts)):
            raise ValueError(
                f"long_prompts={self.long_prompts!r} must be one of {', '.join(get_args(LongPrompts))}, or None"
            )

    @property
    def handling(self) -> LongPrompts:
        """`long_prompts`, or what None stands for."""
        return self.long_prompts or ("refuse" if self.max_prompt_length is None else "truncate")

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is not long."""
        return self.max_prompt_length or self.max_length - 1

    def drops(self, problem: Problem) -> bool:
        """Whether this is a row that was asked to be left out, so that it is no reason to refuse the others."""
        return problem.kind == LONG and self.handling == "drop"


def fit_example(example: Example, limits: Limits, bos: int | None = None) -> Example:
    """The example within limits. Raises TokenError for a long prompt that is not to be cut, or equal responses."""
    prompt, responses = example.prompt, example.responses
    if limits.handling != "truncate" and len(prompt) > limits.longest_prompt:
        raise TokenError(LONG, _too_long(len(prompt), limits), "prompt", example.row)
    prompt, responses = truncate(prompt, responses, limits, bos)
    if len(responses) > 1 and responses[0] == responses[1]:
        cut = "once cut" if example.responses[0] != example.responses[1] else "as tokens"
        raise TokenError(f"equal to chosen {cut}", counted(len(responses[0]), "token"), "rejected", example.row)
    return Example(prompt, tuple(responses), example.row)


def _too_long(size: int, limits: Limits) -> str:
    name = "max_length" if limits.max_prompt_length is None else "max_prompt_length"
    said = f"{counted(size, 'token')}, {name} is {getattr(limits, name)}"
    if limits.handling == "drop":
        return said
    return (
        f"{said}; --long_prompts truncate keeps the end of such prompts, --long_prompts drop leaves their rows out, "
        f"and --{name} may be raised within the model's context"
    )


def truncate(prompt: Ids, responses: Sequence[Ids], limits: Limits, bos: int | None = None) -> tuple[Ids, list[Ids]]:
    """len(prompt) + len(each response) <= max_length: the prompt's start is cut, down to half, then responses' ends.

    All responses share the one prompt, so the longest decides. A prompt that begins with `bos` keeps it. EOS is the
    last token of a response: a cut takes it away and nothing puts it back.
    """
    prompt = keep_last(prompt, limits.max_prompt_length or len(prompt), bos)
    reserved = min(len(prompt), limits.max_length // 2)
    room = min(limits.max_length - reserved, limits.max_response_length or limits.max_length)
    responses = [response[:room] for response in responses]
    return keep_last(prompt, limits.max_length - max(map(len, responses)), bos), responses


def keep_last(ids: Ids, size: int, bos: int | None = None) -> Ids:
    """The last `size` >= 1 ids; a BOS at their start stays."""
    if len(ids) <= size:
        return ids
    return (bos, *ids[len(ids) - size + 1 :]) if size > 1 and ids[0] == bos else ids[len(ids) - size :]
