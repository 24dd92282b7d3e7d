"""The results in words: a line a policy on the screen, tables and samples there and in Markdown."""

import textwrap
from collections.abc import Sequence

from rlhf_lab.common.intervals import sign
from rlhf_lab.common.plots import METHOD_LABELS

LABEL_WIDTH = 19
JUDGES = {"gold": "gold", "score": "proxy"}
REWARDS = ("", "reward", "95%", "vs SFT", "95%", "wins vs SFT")
RIVALS = {
    "sampled": {"vs_tempered": "vs SFT at its KL", "vs_same_length": "vs SFT at its length"},
    "greedy": {"vs_same_length": "vs SFT at its length"},
}
PARTS = {
    **{"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L"},
    **{name: name for name in ("imperative", "sentence", "short", "found")},
}
COMPARED = {1: "better", 0: "NOT clearly better", -1: "WORSE"}
WORSE = "is WORSE than a temperature, which learns nothing"
# By the signs (1: the interval is above 0, -1: below) of sampled reward against SFT at equal KL, and of the greedy one.
TEMPERATURE_CLAIMS = {
    (1, 1): "learns what no temperature reaches",
    (1, 0): "samples better than a temperature of its KL, but its greedy text does NOT clearly gain",
    (1, -1): "samples better than a temperature of its KL, but its greedy text is WORSE",
    (0, 1): "writes better greedy text, but a lower temperature may sample as well",
    (0, 0): "does NOT clearly beat a temperature, which learns nothing",
    (0, -1): WORSE,
    (-1, 1): "writes better greedy text, but a lower temperature samples better",
    (-1, 0): WORSE,
    (-1, -1): WORSE,
}
COSTS = ("", "KL", "95%", "tokens", "characters", "entropy", "pairs", "ties", "identical", "flipped", "equal draws")


def main_judge(results: dict) -> str:
    """The judge whose rewards are the result: gold where there is one."""
    return results["judges"][-1]


def label(row: dict, loop: bool) -> str:
    """A policy's name in tables and figures; loop: with its iteration."""
    name = METHOD_LABELS.get(row["policy"], row["policy"])
    changed = "".join(f", {setting} {value}" for setting, value in row.get("changed", {}).items())
    return name + changed + (f", iteration {row['iteration']}" if loop and row["iteration"] else "")


def is_loop(results: dict) -> bool:
    """True if an objective was trained in several iterations."""
    return results["settings"]["iterations"] > 1


def progress_line(row: dict, gold: bool) -> str:
    """One policy in one line, for the screen."""
    judge = "gold" if gold or "score" not in row else "score"
    gain, wins = row[judge]["delta_vs_sft"], row[judge]["win_rate_vs_sft"]
    return (
        f"{label(row, loop=True)}: {JUDGES[judge]} reward {row[judge]['reward']['mean']:.4f}, "
        f"{gain['mean']:+.4f} ({gain['low']:+.3f} to {gain['high']:+.3f}) against SFT, {wins['mean']:.0%} wins; "
        f"KL {row['kl']['mean']:.2f}, {row['length']['mean']:.1f} tokens; {row['pairs']['pairs']} pairs, "
        f"{row['pairs']['ties']} ties; {sum(row['seconds'].values()):.0f} s"
    )


def reward_table(results: dict, judge: str, decoding: str) -> list[tuple[str, ...]]:
    """Header and a row of text cells a policy; first what needs no learning, as far as it has a reward there."""
    loop = is_loop(results)
    rivals = RIVALS[decoding] if results["tempered"] else {}
    heads = [head for name in rivals.values() for head in (name, "95%")]
    rows = [(*REWARDS, *(("wins vs last",) if loop else ()), *heads)]
    for name, reward in unlearned_rewards(results, judge, decoding).items():
        rows.append((name, *_mean_and_range(reward), *("",) * (len(rows[0]) - 3)))
    for row in results["policies"]:
        numbers = row[judge] if decoding == "sampled" else row[judge]["greedy"]
        cells = [_mean_and_range(numbers[name], "+") if name in numbers else ("", "") for name in rivals]
        rows.append((label(row, loop), *_rewards(numbers, loop), *(cell for pair in cells for cell in pair)))
    return rows


def unlearned_rewards(results: dict, judge: str, decoding: str) -> dict[str, dict]:
    """{name: its reward} of what nobody has to learn for; among samples also tempered and best of n."""
    found = {name: row["reward"] for name, row in results["unlearned"].items()} if judge == "gold" else {}
    if decoding == "sampled":
        lower = (row for row in results["tempered"] if 0.0 < row["temperature"] < 1.0)
        found |= {f"SFT, temperature {row['temperature']:g}": row[judge] for row in lower}
        column = "proxy" if judge == "score" else "gold"
        found |= {f"SFT, best of {row['n']}": row[column] for row in results["best_of_n"]}
    return found


def parts_table(results: dict, decoding: str) -> list[tuple[str, ...]]:
    """Header and a row a policy: ROUGE F1 and the rules of the house style, as far as the gold judge asks for them."""
    names = list(results["policies"][0]["parts"][decoding])
    rows = [("", *(PARTS[name] for name in names))]
    for name, row in results["unlearned"].items():
        rows.append((name, *(f"{row['parts'][part]:.3f}" for part in names)))
    for row in results["policies"]:
        rows.append((label(row, is_loop(results)), *(f"{row['parts'][decoding][part]:.3f}" for part in names)))
    return rows


def contrast_table(results: dict) -> list[tuple[str, ...]]:
    """Header and a row for every two objectives: by how much the first has more reward, paired by prompt."""
    rows = [("", "sampled", "95%", "greedy", "95%")]
    for row in results["contrasts"]:
        name = f"{METHOD_LABELS.get(row['a'], row['a'])} minus {METHOD_LABELS.get(row['b'], row['b'])}"
        rows.append((name, *_mean_and_range(row["sampled"], "+"), *_mean_and_range(row["greedy"], "+")))
    return rows


def cost_table(results: dict) -> list[tuple[str, ...]]:
    """Header and a row of text cells a policy: what it paid in KL, length and comparisons."""
    rows = [COSTS]
    for row in results["policies"]:
        pairs = row.get("pairs", {})
        counts = (str(pairs.get(name, "")) for name in ("pairs", "ties", "identical", "flipped"))
        share = f"{pairs['identical_share']:.1%}" if pairs else ""
        means = (f"{row['length']['mean']:.1f}", f"{row['characters']['mean']:.1f}", f"{row['entropy']['mean']:.3f}")
        kl = row["kl"]
        cells = (f"{kl['mean']:.2f}", f"{kl['low']:.2f} to {kl['high']:.2f}", *means, *counts, share)
        rows.append((label(row, is_loop(results)), *cells))
    return rows


def seconds_table(results: dict) -> list[tuple[str, ...]]:
    """Seconds of each stage, a row a policy, the header first; what objectives share stands in each of their rows."""
    names = list(dict.fromkeys(name for row in results["policies"] for name in row["seconds"]))
    rows = [("", *names)]
    for row in results["policies"]:
        cells = (f"{row['seconds'].get(name, 0.0):.1f}" for name in names)
        rows.append((label(row, is_loop(results)), *cells))
    return rows


def verdicts(results: dict) -> list[str]:
    """One sentence a policy: does it learn, which no lower temperature of SFT does?"""
    judge = main_judge(results)
    return [claim(label(row, is_loop(results)), row[judge]) for row in results["policies"][1:]]


def claim(name: str, rewards: dict) -> str:
    """A method learns if its sampled reward clears the SFT model's at the temperature of its KL, and its greedy reward
    that of the SFT model. rewards: of a policy by one judge; without baselines nothing is said of temperatures.
    """
    greedy = rewards["greedy"]["delta_vs_sft"]
    if "vs_tempered" not in rewards:
        sampled = rewards["delta_vs_sft"]
        words = f"samples {COMPARED[sign(sampled)]} than the SFT model, greedy text {COMPARED[sign(greedy)]}"
        words += ", and no lower temperature was measured"
        return f"{name} {words}: {_signed(sampled)} against the SFT model, and {_signed(greedy)} in greedy reward."
    sampled = rewards["vs_tempered"]
    return (
        f"{name} {TEMPERATURE_CLAIMS[sign(sampled), sign(greedy)]}: {_signed(sampled)} against the SFT model at the "
        f"temperature of its KL, and {_signed(greedy)} in greedy reward."
    )


def samples_text(results: dict) -> str:
    """Prompts with the human response and every last policy's greedy and first sampled one, for the screen."""
    blocks = []
    for item in results["samples"]:
        lines = [_entry("prompt", str(item["prompt"]))]
        lines += [_entry("human", item["reference"])] if item["reference"] else []
        for name, texts in item["policies"].items():
            lines.append(_entry(METHOD_LABELS.get(name, name), texts["greedy"]))
            lines.append(_entry("  sampled", texts["sampled"]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def screen(results: dict) -> str:
    """All that the command prints at the end."""
    parts = []
    for decoding in ("sampled", "greedy"):
        parts.append(f"{decoding} responses to {results['settings']['eval_prompts']} held-out prompts")
        parts.append(aligned(reward_table(results, main_judge(results), decoding)) + "\n")
    if results["policies"][0]["parts"]["greedy"]:
        parts += ["what the greedy responses' reward is made of", aligned(parts_table(results, "greedy")) + "\n"]
    if results["contrasts"]:
        parts += ["the methods against each other", aligned(contrast_table(results)) + "\n"]
    parts += ["what it cost", aligned(cost_table(results)) + "\n", *verdicts(results), *corpus_note(results)]
    return "\n".join([*parts, "", samples_text(results)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def corpus_note(results: dict) -> list[str]:
    """A sentence if the corpus is another than that of the shipped numbers."""
    corpus = results["corpus"]
    if corpus is None or corpus["shipped"]:
        return []
    return [
        f"The corpus ({corpus['pairs']:,} pairs, fingerprint {corpus['fingerprint']}) is not that of the published "
        "numbers, for other versions of packages or of Python are installed: expect other numbers."
    ]


def _rewards(numbers: dict, loop: bool) -> tuple[str, ...]:
    gain = numbers.get("delta_vs_sft")
    wins = [numbers.get(f"win_rate_vs_{name}") for name in (("sft", "last") if loop else ("sft",))]
    return (
        *_mean_and_range(numbers["reward"]),
        *(_mean_and_range(gain, "+") if gain else ("", "")),
        *(f"{rate['mean']:.1%}" if rate else "" for rate in wins),
    )


def _signed(value: dict) -> str:
    return f"{value['mean']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"


def _mean_and_range(value: dict, sign: str = "") -> tuple[str, str]:
    return f"{value['mean']:{sign}.4f}", f"{value['low']:{sign}.3f} to {value['high']:{sign}.3f}"


def _entry(name: str, text: str) -> str:
    indent = " " * LABEL_WIDTH
    return textwrap.fill(text, 110, initial_indent=name.ljust(LABEL_WIDTH), subsequent_indent=indent)
