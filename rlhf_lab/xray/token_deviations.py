"""Deviations in what counts: masks, lengths, and the precision of sums."""

from collections.abc import Iterator

from rlhf_lab.xray.facts import Deviation, Facts
from rlhf_lab.xray.pairs import Target

EQUAL = "every token: log pi = log pi_ref = -0.9 nats, 4 tokens each"
MASKS = {
    "mask off by one": "The mask is shifted by one position against the log-probs.",
    "EOS dropped": "The token that ends a response gets no gradient, so stopping is not learned.",
    "first token dropped": "The first token of a response gets no gradient.",
    "prompt counted": "Tokens of the prompt count.",
    "padding counted": "Padding counts.",
    "user turn counted": "Tokens of the other speaker count.",
}


def two(given: str, seen: str) -> str:
    """An example: what was given, and what came out."""
    return f"{given}\n{seen}"


def token_deviations(target: Target, facts: Facts, nearest: str | None) -> Iterator[Deviation]:
    """Which tokens count, how they are averaged, and how exactly they are summed."""
    if facts.counted and target.level != "sequences":
        names = sorted({name for side in facts.counted for name in _masks(side)})
        for name in names:
            shares = ", ".join(f"{role} {share:.3g}" for role, share in facts.counted[0].items())
            yield Deviation(name, MASKS[name], two(EQUAL, f"gradient of each position: {shares}"))
    if facts.length == "mean":
        lines = (
            "every token: log pi = log pi_ref = -0.9 nats; 2, 3, 5 or 8 tokens\na token's gradient falls as 1 / tokens"
        )
        yield Deviation("mean for sum", "Log-probs are averaged over tokens, not summed.", lines)
    elif facts.length in ("mean with padding", "other"):
        lines = (
            "every token: log pi = log pi_ref = -0.9 nats; 2, 3, 5 or 8 tokens\na token's gradient depends on the row"
        )
        yield Deviation("padding in the mean", "Log-probs are divided by something else than their tokens.", lines)
    if facts.precision == "lower":
        lines = two(
            "512 tokens of -8.453125 nats (trainers: 48 of -3.1), differences of about 1 nat",
            "the sum is off by more than 0.1%",
        )
        yield Deviation("low-precision sums", "Long log-probs lose their digits, as in bf16.", lines)


def _masks(shares: dict[str, float]) -> Iterator[str]:
    """Names of what is wrong with one side's mask."""
    got = {role: bool(share) for role, share in shares.items()}
    padded = any(got.get(role) for role in ("after EOS", "padding", "padding of a batch"))
    early = got.get("prompt end") and not got.get("prompt") and not got["EOS"]
    if early or (not got["first"] and padded):
        yield "mask off by one"
        return
    wrong = {"EOS dropped": not got["EOS"], "first token dropped": not got["first"], "padding counted": padded}
    wrong |= {"prompt counted": got.get("prompt") or got.get("prompt end")}
    wrong |= {"user turn counted": got.get("user turn")}
    yield from (name for name, here in wrong.items() if here)
