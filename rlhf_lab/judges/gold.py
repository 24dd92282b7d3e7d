"""The gold judge of the docstring task: ROUGE-L F1 against the human summary, which no trained judge gets to see."""

from collections.abc import Callable, Sequence

from rlhf_lab.data.contents import Content
from rlhf_lab.judges.rouge import rouge_l

# judge(prompts, n responses to each, one reference per prompt or None) -> n scores per prompt; higher is better.
# A prompt is text, or a tuple of messages if the user's own prompts are; responses are text always.
Judge = Callable[[Sequence[Content], Sequence[Sequence[str]], Sequence[str] | None], list[list[float]]]


def gold_score(response: str, reference: str, length_penalty: float = 0.0) -> float:
    """ROUGE-L F1 in [0, 1] minus length_penalty per character of the response."""
    return rouge_l(response, reference) - length_penalty * len(response)


def gold_judge(length_penalty: float = 0.0) -> Judge:
    """The judge that knows the human text: `gold_score` of every response.

    length_penalty: reward per character, >= 0 (RLHF Workflow, arXiv 2405.07863, takes .001 of another reward's units).
    The judge raises ValueError if references are missing or of another number.
    """
    if not 0.0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty={length_penalty}: must be a finite number, 0 or above")

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        if references is None or not len(references) == len(prompts) == len(responses):
            found = "none" if references is None else len(references)
            raise ValueError(
                f"the gold judge needs one human text per prompt: {len(prompts)} prompts, {len(responses)} lists of "
                f"responses, references: {found}"
            )
        rows = zip(responses, references, strict=True)
        return [[gold_score(text, reference, length_penalty) for text in texts] for texts, reference in rows]

    return judge
