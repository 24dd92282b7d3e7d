"""The true reward of the docstring task, which no trained judge gets to see: content, style, or both.

    content = ROUGE-L F1 against the author's summary        style: `judges.style`        house = their weighted mean

Comparisons by content alone teach the SFT model little: its most likely summary already is what ROUGE-L asks for, so
that a lower temperature does as well. The authors do not keep to the house style, and there learning is needed.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

from rlhf_lab.data.contents import Content
from rlhf_lab.judges.rouge import rouge_l
from rlhf_lab.judges.style import document_of, style_parts

# judge(prompts, n responses to each, one reference per prompt or None) -> n scores per prompt; higher is better.
# A prompt is text, or a tuple of messages if the user's own prompts are; responses are text always.
Judge = Callable[[Sequence[Content], Sequence[Sequence[str]], Sequence[str] | None], list[list[float]]]
GoldName = Literal["content", "style", "house"]
STYLE_WEIGHT = 0.5


def content_score(response: str, reference: str, length_penalty: float = 0.0) -> float:
    """ROUGE-L F1 in [0, 1] minus length_penalty per character of the response."""
    return rouge_l(response, reference) - length_penalty * len(response)


def house_score(content: float, style: float, style_weight: float = STYLE_WEIGHT) -> float:
    """(1 - style_weight) * content + style_weight * style, in [0, 1] if both are."""
    return (1.0 - style_weight) * content + style_weight * style


def content_judge(length_penalty: float = 0.0) -> Judge:
    """The judge that knows the human text: `content_score` of every response.

    length_penalty: reward per character, >= 0 (RLHF Workflow, arXiv 2405.07863, takes .001 of another reward's units).
    The judge raises ValueError if references are missing or of another number.
    """
    if not 0.0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty={length_penalty}: must be a finite number, 0 or above")

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        known = _references("content", prompts, responses, references)
        rows = zip(responses, known, strict=True)
        return [[content_score(text, reference, length_penalty) for text in texts] for texts, reference in rows]

    return judge


def style_judge(verbs: Collection[str]) -> Judge:
    """`style_parts(..).score` of every response; verbs: of `imperative_verbs`. It needs no references."""

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        scores = []
        for prompt, texts in zip(prompts, responses, strict=True):
            document = document_of(prompt)
            scores.append([style_parts(document, text, verbs).score for text in texts])
        return scores

    return judge


def house_judge(verbs: Collection[str], style_weight: float = STYLE_WEIGHT) -> Judge:
    """`house_score` of every response. style_weight: in [0, 1]. The judge raises ValueError without references."""
    if not 0.0 <= style_weight <= 1.0:
        raise ValueError(f"style_weight={style_weight}: must be in [0, 1]")
    content, style = content_judge(), style_judge(verbs)

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        known = _references("house", prompts, responses, references)
        scores = []
        for told, kept in zip(content(prompts, responses, known), style(prompts, responses, known), strict=True):
            scores.append([house_score(c, s, style_weight) for c, s in zip(told, kept, strict=True)])
        return scores

    return judge


def _references(
    name: str, prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None
) -> Sequence[str]:
    if references is None or not len(references) == len(prompts) == len(responses):
        found = "none" if references is None else len(references)
        raise ValueError(
            f"the {name} judge needs one human text per prompt: {len(prompts)} prompts, {len(responses)} lists of "
            f"responses, references: {found}"
        )
    return references
