"""The main job over several seeds: its table, its claims in words, and the README's picture, from results.json files.

Intervals cover runs and documents (`common.intervals.over_runs`): another draw of the training data moves a method as
much as another draw of the documents does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import Interval, number, over_runs
from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.common.plots import (
    METHOD_LABELS,
    OKABE_ITO,
    label_ends,
    method_colour,
    save_png,
    spread_labels,
    style,
)
from rlhf_lab.data.docstrings import TLDR_TOKEN
from rlhf_lab.workflow.measures import content_and_style
from rlhf_lab.workflow.report import claim, label

BLACK = OKABE_ITO["black"]
Records = Sequence[Mapping]
SAMPLED = ("sampled at temperature 1", "reward", "KL, nats", "minus SFT", "minus SFT at that KL", "tokens")
GREEDY = ("greedy", "reward", "minus SFT", "minus SFT at that length", "content", "style")


def sampled_table(records: Records) -> str:
    """A row for SFT at each temperature, for its best of n by gold, and for every method, as Markdown."""
    rows = [SAMPLED]
    for place, point in enumerate(records[0]["tempered"]):
        if 0 < point["temperature"] < 1:
            found = [record["tempered"][place] for record in records]
            cells = (
                number(_over(found, lambda r, n=name: r[n]), form) for name, form in (("gold", ".3f"), ("kl", ".1f"))
            )
            rows.append((f"SFT, temperature {point['temperature']:g}", *cells, "", "", ""))
    for place, row in enumerate(records[0]["best_of_n"]):
        reward = _over([record["best_of_n"][place] for record in records], lambda r: r["gold"])
        rows.append((f"SFT, best of {row['n']} by gold", number(reward, ".3f"), f"at most {row['kl']:.1f}", "", "", ""))
    reads = {
        **{"reward": (lambda row: row["gold"]["reward"], ".3f"), "kl": (lambda row: row["kl"], ".1f")},
        "gain": (lambda row: row["gold"].get("delta_vs_sft"), "+.3f"),
        "at its KL": (lambda row: row["gold"].get("vs_tempered"), "+.3f"),
        "tokens": (lambda row: row["length"], ".1f"),
    }
    return markdown_table(rows + _policy_rows(records, reads.values()))


def greedy_table(records: Records) -> str:
    """A row for the texts that no model wrote and for every policy: its reward and the parts of it, as Markdown."""
    rows = [GREEDY]
    for name in records[0]["unlearned"]:
        found = [record["unlearned"][name] for record in records]
        reward = number(_over(found, lambda row: row["reward"]), ".3f")
        rows.append((name, reward, "", "", *_made_of([row["parts"] for row in found])))
    reads = {
        "reward": (lambda row: row["gold"]["greedy"]["reward"], ".3f"),
        "gain": (lambda row: row["gold"]["greedy"].get("delta_vs_sft"), "+.3f"),
        "at its length": (lambda row: row["gold"]["greedy"].get("vs_same_length"), "+.3f"),
    }
    for place, cells in enumerate(_policy_rows(records, reads.values())):
        parts = [record["policies"][place]["parts"]["greedy"] for record in records]
        rows.append((*cells, *_made_of(parts)))
    return markdown_table(rows)


def _policy_rows(records: Records, reads: Iterable[tuple[Callable, str]]) -> list[tuple[str, ...]]:
    """Name and cells of every policy: each read from its rows and put together over the runs; "" where it has none."""
    rows = []
    for place, row in enumerate(records[0]["policies"]):
        found = [record["policies"][place] for record in records]
        cells = ("" if read(row) is None else number(_over(found, read), form) for read, form in reads)
        rows.append((label(row, loop=False), *cells))
    return rows


def validation_table(records: Records) -> str:
    """A row for every objective and learning rate that was tried on validation documents; intervals over documents."""
    head = ("objective", "alpha", "learning rate", "KL, nats", "sampled, minus SFT at that KL", "greedy, minus SFT")
    rows = {}
    for record in records:
        for row in record["policies"][1:]:
            gold, rate, alpha = row["gold"], row["learning_rate"], record["objectives"][row["policy"]]["alpha"]
            cells = (f"{row['kl']['mean']:.1f}", number(gold["vs_tempered"], "+.3f"))
            cells += (number(gold["greedy"]["delta_vs_sft"], "+.3f"), f"{smaller_gain(row):+.3f}")
            name = METHOD_LABELS[row["policy"]]
            rows[name, alpha, rate] = (name, f"{alpha:g}", f"{rate:g}", *cells, *_made_of([row["parts"]["greedy"]]))
    rows = [(*head, "the smaller one", "content", "style"), *(rows[key] for key in sorted(rows))]
    return markdown_table(rows)


def smaller_gain(row: Mapping) -> float:
    """What settings are chosen by: a method learns if both gains are above 0, so that the smaller one counts."""
    gold = row["gold"]
    return min(gold["vs_tempered"]["mean"], gold["greedy"]["delta_vs_sft"]["mean"])


def contrasts_table(records: Records) -> str:
    """A row for every two methods: greedy and sampled reward of the first minus that of the second."""
    rows = [("", "sampled", "greedy")]
    for place, row in enumerate(records[0]["contrasts"]):
        found = [record["contrasts"][place] for record in records]
        cells = (number(_over(found, lambda r, d=decoding: r[d]), "+.3f") for decoding in ("sampled", "greedy"))
        rows.append((f"{METHOD_LABELS[row['a']]} minus {METHOD_LABELS[row['b']]}", *cells))
    return markdown_table(rows)


def claims(records: Records) -> str:
    """One sentence a method, over all seeds: does it learn what no temperature reaches?"""
    sentences = []
    for place, row in enumerate(records[0]["policies"]):
        if row["iteration"]:
            found = [record["policies"][place] for record in records]
            rewards = {name: _over(found, lambda r, n=name: r["gold"][n]) for name in ("vs_tempered", "delta_vs_sft")}
            greedy = {"delta_vs_sft": _over(found, lambda r: r["gold"]["greedy"]["delta_vs_sft"])}
            sentences.append(f"- {claim(label(row, loop=False), rewards | {'greedy': greedy})}")
    return "\n".join(sentences)


def samples(records: Records) -> str:
    """Greedy summaries of every run's first held-out documents, taken by the seed and not chosen, as a text block."""
    blocks = []
    for record in records:
        for item in record["samples"]:
            texts = {"document": str(item["prompt"]).removesuffix(TLDR_TOKEN), "author": item["reference"]}
            texts |= {METHOD_LABELS.get(name, name): each["greedy"] for name, each in item["policies"].items()}
            blocks.append(
                "\n".join(f"{name:13}{shorten(text, 105, placeholder=' ..')}" for name, text in texts.items())
            )
    return "```text\n" + "\n\n".join(blocks) + "\n```"


def draw(records: Records) -> Figure:
    """Left: sampled reward against KL, beside SFT at lower temperatures. Right: what greedy text is made of."""
    with style():
        figure = Figure(figsize=(11.0, 4.6))
        frontier, made_of = figure.subplots(1, 2)
        _frontier(frontier, records)
        _content_and_style(made_of, records)
    return figure


def _frontier(ax: Axes, records: Records) -> None:
    curve = []
    for place in range(len(records[0]["tempered"])):
        found = [record["tempered"][place] for record in records]
        curve.append(
            (_over(found, lambda row: row["kl"]), _over(found, lambda row: row["gold"]), found[0]["temperature"])
        )
    xs = [kl["mean"] for kl, _, _ in curve]
    ax.plot(xs, [reward["mean"] for _, reward, _ in curve], ".--", color=BLACK, linewidth=1.2, label="_SFT")
    band = ([reward["low"] for _, reward, _ in curve], [reward["high"] for _, reward, _ in curve])
    ax.fill_between(xs, *band, color=BLACK, alpha=0.1, linewidth=0)
    for kl, reward, temperature in curve:
        text = {1.0: "SFT, T 1", 0.0: "SFT, greedy"}.get(temperature, f"T {temperature:g}")
        ax.annotate(text, (kl["mean"], reward["mean"]), (5, -11), textcoords="offset points", color=BLACK, fontsize=8)
    places = []
    for place, row in enumerate(records[0]["policies"]):
        if row["iteration"]:
            found = [record["policies"][place] for record in records]
            kl, reward = _over(found, lambda r: r["kl"]), _over(found, lambda r: r["gold"]["reward"])
            _cross(ax, kl, reward, row["policy"])
            places.append((kl["low"], reward["mean"], row["policy"]))
    ax.set(title="sampled at temperature 1", xlabel="KL to the SFT model, nats a response", ylabel="house reward")
    ax.margins(x=0.14, y=0.12)
    _label_on_the_left(ax, places)


def _label_on_the_left(ax: Axes, places: Sequence[tuple[float, float, str]]) -> None:
    """Names of methods left of their crosses, where the curve is not; moved apart where they would overlap."""
    low, high = ax.get_ylim()
    room = 0.045 * (high - low)  # a line of text
    heights = spread_labels([reward for _, reward, _ in places], [room] * len(places))
    for (kl, _, policy), height in zip(places, heights, strict=True):
        place = {"textcoords": "offset points", "ha": "right", "va": "center", "color": method_colour(policy)}
        ax.annotate(METHOD_LABELS[policy], (kl, height), (-5, 0), **place)


def _content_and_style(ax: Axes, records: Records) -> None:
    for name in records[0]["unlearned"]:
        content, kept = _content_style([record["unlearned"][name]["parts"] for record in records])
        ax.plot(kept, content, "x", color=BLACK, label="_unlearned")
        right = kept > 0.6
        place = {"ha": "right" if right else "left", "textcoords": "offset points", "fontsize": 8}
        ax.annotate(name, (kept, content), (-6 if right else 6, -3), color=BLACK, **place)
    for place, row in enumerate(records[0]["policies"]):
        each = [_content_style([record["policies"][place]["parts"]["greedy"]]) for record in records]
        colour = method_colour(row["policy"])
        content, kept = np.mean(each, axis=0)
        ax.plot([k for _, k in each], [c for c, _ in each], ".", color=colour, alpha=0.5, markersize=5, label="_seeds")
        ax.plot([kept], [content], "o", color=colour, label=label(row, loop=False))
    ax.set(title="greedy: what it says and how", xlabel="style: share of the rules kept", ylabel="content: ROUGE-L F1")
    ax.margins(0.15)
    label_ends(ax)


def _cross(ax: Axes, x: Interval, y: Interval, policy: str) -> None:
    colour = method_colour(policy)
    ax.plot([x["low"], x["high"]], [y["mean"]] * 2, color=colour, linewidth=1.5)
    ax.plot([x["mean"]] * 2, [y["low"], y["high"]], color=colour, linewidth=1.5)
    ax.plot(x["mean"], y["mean"], "o", color=colour)


def alt(records: Records) -> str:
    """The picture in words."""
    parts = []
    for place, row in enumerate(records[0]["policies"]):
        found = [record["policies"][place] for record in records]
        sampled, kl = _over(found, lambda r: r["gold"]["reward"])["mean"], _over(found, lambda r: r["kl"])["mean"]
        greedy = _over(found, lambda r: r["gold"]["greedy"]["reward"])["mean"]
        content, kept = _content_style([r["parts"]["greedy"] for r in found])
        parts.append(
            f"{label(row, loop=False)} {sampled:.3f} sampled at {kl:.1f} nats, {greedy:.3f} greedy, of content "
            f"{content:.3f} and style {kept:.3f}"
        )
    shown = "House reward against KL beside the SFT model at lower temperatures, and content against style"
    return f"{shown}: {'; '.join(parts)}."


def write_picture(records: Records, path: Path) -> None:
    """The README's picture."""
    save_png(draw(records), path, dpi=120)


def _over(found: Sequence[Mapping], read: Callable[[Mapping], Interval]) -> Interval:
    return over_runs([read(row) for row in found])


def _made_of(parts: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    content, kept = _content_style(parts)
    return f"{content:.3f}", f"{kept:.3f}"


def _content_style(parts: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """`content_and_style`, as means over runs."""
    content, kept = np.mean([content_and_style(row) for row in parts], axis=0)
    return float(content), float(kept)
