"""The pairwise judge behind a completions server: the prompt of `judges.pairwise`, one token answered, both orders.

    prompt + "A:" + first + "B:" + second + "Better:"  ->  top_logprobs of the one answered token

    p_A(a, b) = p("A") / (p("A") + p("B")),     P(y1 > y2 | x) = 1/2 [ p_A(y1, y2) + 1 - p_A(y2, y1) ]

So P(a, b) + P(b, a) = 1, whatever the served model thinks of slots. The server tokenises the whole text, the local
judge each part by itself: where a token joins two parts, the two may differ. Nothing is cut: a text that is too long
is the server's to refuse. The served model is one that `train_pairwise` made, or one that answers this prompt as it
stands; there is no chat template.
"""

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import torch

from rlhf_lab.common.files import key_of
from rlhf_lab.common.journal import kept
from rlhf_lab.data.contents import Content
from rlhf_lab.data.problems import shorten
from rlhf_lab.engine.options import check_positive
from rlhf_lab.engine.serving.connection import ask, ask_all, check_server, one_choice
from rlhf_lab.engine.serving.exchange import Server, ServerError, base_url
from rlhf_lab.judges.gold import Judge
from rlhf_lab.judges.pairwise import MARKERS, both_orders, tournament_scores

JudgeAnswer = Literal["logprobs", "letter"]
LABELS = ("A", "B")
LISTED = 5  # tokens with a log-prob, the most that all servers allow
TOLERANCE = 0.01  # of p_A: how much a label that is not listed may matter


def server_judge(
    url: str,
    model_name: str,
    *,
    answer: JudgeAnswer = "logprobs",
    concurrency: int = 16,
    timeout: float = 120.0,
    retries: int = 5,
    backoff: float = 0.5,
    api_key_variable: str | None = None,
    work: Path | None = None,
    progress: str | None = None,
) -> Judge:
    """The judge that lets all responses of a prompt play each other, K (K - 1) short requests: `tournament_scores`.

    answer: "logprobs" reads p_A from the answered token's `top_logprobs` (vLLM returns them); "letter" takes the
    letter that the server writes as p_A = 0 or 1, so that a comparison is 0, 1/2 or 1 (`transformers serve`).
    concurrency, timeout, retries, backoff, api_key_variable: as in `server_sample`. work: folder where the
    answers of a call that fails are kept for the next one. The judge raises ServerError that names the comparison and
    says what to do.
    """
    check_positive("concurrency", concurrency)
    if answer not in ("logprobs", "letter"):
        raise ValueError(f"answer={answer!r}: must be logprobs or letter")
    base = base_url(url)

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        if messages := sum(not isinstance(prompt, str) for prompt in prompts):
            raise ValueError(
                f"{messages} of {len(prompts)} prompts are messages, and a served judge has no chat template: give "
                "text prompts, or judge by a model's folder"
            )
        server = Server(base, model_name, api_key_variable, timeout, retries, backoff)
        rows = list(zip(prompts, responses, strict=True))
        asked = [question(prompt, *pair) for prompt, texts in rows for pair in permutations(texts, 2)]
        found = iter(_answers(server, asked, answer, concurrency, work, progress))
        scores = []
        for _, texts in rows:
            p_first = torch.tensor([next(found) for _ in permutations(texts, 2)], dtype=torch.float32)
            scores.append(tournament_scores(both_orders(p_first, len(texts))).tolist())
        return scores

    return judge


def question(prompt: str, first: str, second: str) -> str:
    """What the server reads; the label is still to come."""
    return f"{prompt}{MARKERS[0]}{first}{MARKERS[1]}{second}{MARKERS[2]}"


def first_wins(server: Server, answer: dict, name: str, kind: JudgeAnswer) -> float:
    """p_A in [0, 1] of one comparison's answer. Raises ServerError that names it if there is none to read."""
    choice = one_choice(server, answer, name)
    if kind == "logprobs":
        return _from_logprobs(server, _top_logprobs(server, choice, name), name)
    if choice["text"].strip() not in LABELS:
        wrote = shorten(server.masked(choice["text"]))
        raise ServerError(f"{server.url}, {name}: the model wrote {wrote}, neither A nor B: serve a pairwise model")
    return float(choice["text"].strip() == "A")


def _answers(
    server: Server, asked: Sequence[str], kind: JudgeAnswer, concurrency: int, work: Path | None, progress: str | None
) -> list[float]:
    """p_A of every question; equal questions are asked once."""
    texts = list(dict.fromkeys(asked))
    limit = {"max_tokens": 1, "temperature": 0.0} | ({"logprobs": LISTED} if kind == "logprobs" else {})

    def ask_for(index: int, _: int) -> float:
        body = {"model": server.model_name, "prompt": texts[index], **limit}
        return first_wins(server, ask(server, "/v1/completions", body), f"comparison {index} of {len(texts)}", kind)

    name = f".judged-{key_of(model=server.model_name, kind=kind, texts=texts)}.jsonl"
    with kept(work and work / name) as done:
        found = done["judged"]
        missing = [(i, 0) for i in range(len(texts)) if (i, 0) not in found]
        if missing:
            check_server(server)
            ask_all(ask_for, missing, found, server.stop, concurrency, progress)
    by_text = {text: found[i, 0] for i, text in enumerate(texts)}
    return [by_text[text] for text in asked]


def _top_logprobs(server: Server, choice: dict[str, Any], name: str) -> dict[str, float]:
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not tokens:
        raise ServerError(
            f"{server.url}, {name}: the answer has no top_logprobs. Judge by a server that returns them (vLLM), or set "
            "--judge_answer letter, which counts the letter that it writes as 0 or 1"
        )
    first = tokens[0] if isinstance(tokens, list) else None
    numbers = list(first.values()) if isinstance(first, dict) else []
    if not numbers or not all(isinstance(v, int | float) and v < 0.01 for v in numbers):  # NaN is not below anything
        raise ServerError(
            f"{server.url}, {name}: top_logprobs is {shorten(server.masked(tokens))}, not a log-prob of each of some "
            "tokens: look at what the served model computes for this prompt"
        )
    return first


def _from_logprobs(server: Server, logprobs: dict[str, float], name: str) -> float:
    """p(A) / (p(A) + p(B)); a label that is not among the most likely tokens counts 0 where that hardly matters."""
    p = dict.fromkeys(LABELS, 0.0)
    for token, value in logprobs.items():
        if token.strip() in LABELS:  # "A" and " A" are two tokens
            p[token.strip()] += math.exp(value)
    total, least = sum(p.values()), math.exp(min(logprobs.values()))
    if total == 0.0 or (min(p.values()) == 0.0 and least / (total + least) > TOLERANCE):
        raise ServerError(
            f"{server.url}, {name}: A and B are not among the {len(logprobs)} most likely answers "
            f"{shorten(server.masked(logprobs))}: serve a pairwise model (train_pairwise), or one that answers this "
            "prompt with A or B"
        )
    return p["A"] / total
