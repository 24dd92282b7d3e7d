"""The loop's results in words: a line an iteration on the screen, and tables in Markdown."""

from collections.abc import Sequence

from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.online.figure import JUDGES

HEADER = ("iteration", "reward", "95%", "vs pi_0", "95%", "wins vs pi_0", "wins vs last", "greedy", "greedy vs pi_0")
COSTS = (
    "iteration",
    "KL",
    "95%",
    "tokens",
    "characters",
    "entropy",
    "pairs",
    "ties",
    "no two texts",
    "flipped",
    "equal draws",
)


def progress_line(row: dict) -> str:
    """One iteration in one line, for the screen."""
    judge = "gold" if "gold" in row else "score"
    gain, wins = row[judge]["delta_vs_sft"], row[judge]["win_rate_vs_sft"]
    return (
        f"iteration {row['iteration']}: {JUDGES[judge]} reward {row[judge]['reward']['mean']:.4f}, "
        f"{gain['mean']:+.4f} ({gain['low']:+.3f} to {gain['high']:+.3f}) against pi_0, {wins['mean']:.0%} wins; "
        f"KL {row['kl']['mean']:.2f}, {row['length']['mean']:.1f} tokens; {row['pairs']['pairs']} pairs, "
        f"{row['pairs']['ties']} ties; {sum(row['seconds'].values()):.0f} s"
    )


def reward_rows(rows: Sequence[dict], judge: str) -> list[tuple[str, ...]]:
    """Text cells under HEADER, one row an iteration."""
    return [
        (
            str(row["iteration"]),
            *_mean_and_range(row[judge]["reward"]),
            *(_mean_and_range(row[judge]["delta_vs_sft"], "+") if row["iteration"] else ("", "")),
            *(f"{row[judge][name]['mean']:.1%}" if row["iteration"] else "" for name in WINS),
            f"{row[judge]['greedy']['reward']['mean']:.4f}",
            f"{row[judge]['greedy']['delta_vs_sft']['mean']:+.4f}" if row["iteration"] else "",
        )
        for row in rows
    ]


WINS = ("win_rate_vs_sft", "win_rate_vs_last")


def cost_rows(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """Text cells under COSTS, one row an iteration."""
    cells = []
    for row in rows:
        pairs = row.get("pairs", {})
        counts = (str(pairs.get(name, "")) for name in ("pairs", "ties", "identical", "flipped"))
        share = f"{pairs['identical_share']:.1%}" if pairs else ""
        means = (f"{row['length']['mean']:.1f}", f"{row['characters']['mean']:.1f}", f"{row['entropy']['mean']:.3f}")
        cells.append((str(row["iteration"]), *_mean_and_range(row["kl"]), *means, *counts, share))
    return cells


def seconds_rows(rows: Sequence[dict]) -> list[tuple[str, ...]]:
    """Seconds of each stage, one row an iteration, the header first."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    cells = [(str(r["iteration"]), *(f"{r['seconds'].get(name, 0.0):.1f}" for name in names)) for r in rows]
    return [("iteration", *names), *cells]


def markdown(results: dict, figure: str, alt: str) -> str:
    """report.md: the figure, a table of rewards for each judge, costs, times, how to read it, and all settings."""
    rows, settings = results["iterations"], results["settings"]
    facts = {**settings, **results["objective"], **results["training"]}
    sections = [
        "# Online preference optimisation",
        f"{len(rows) - 1} iterations of {settings['prompts']} prompts, {settings['candidates']} candidates each, pairs "
        f"{settings['pairs']}, judge {settings['judge']}; measured on {settings['eval_prompts']} held-out prompts, "
        f"{settings['eval_samples']} samples each. All stages together took "
        f"{sum(sum(row['seconds'].values()) for row in rows):.0f} s.",
        f"![{alt}]({figure})",
    ]
    for judge in results["judges"]:
        sections += [f"## {JUDGES[judge].capitalize()} reward", markdown_table([HEADER, *reward_rows(rows, judge)])]
    sections += ["## What it cost", markdown_table([COSTS, *cost_rows(rows)])]
    sections += ["## Seconds of each stage", markdown_table(seconds_rows(rows))]
    sections += ["## How to read it", HOW_TO_READ, "## Settings"]
    sections.append(markdown_table([("setting", "value"), *((name, str(value)) for name, value in facts.items())]))
    sections.append(markdown_table([("version", ""), *results["versions"].items()]))
    return "\n\n".join(sections) + "\n"


def _mean_and_range(value: dict, sign: str = "") -> tuple[str, str]:
    return f"{value['mean']:{sign}.4f}", f"{value['low']:{sign}.3f} to {value['high']:{sign}.3f}"


HOW_TO_READ = """\
- Iteration 0 is pi_0, the SFT model. Intervals: 95%, bootstrap over held-out prompts; differences are paired by prompt.
- Gold is the reward against human text; proxy is what the judge scored. Where the proxy rises and gold does not, the
  policy exploits the judge. A pairwise judge's proxy is the probability to beat pi_0's response to the same prompt.
- wins: share of comparisons of sampled responses to the same prompt that have more reward; ties count half.
- KL: mean over sampled responses of log pi - log pi_0, summed over the response, in nats. entropy: minus the mean
  log-prob of a sampled token, in nats. tokens: with the end-of-text token.
- ties: comparisons of equal (penalised) score; no two texts: the draws had too few distinct texts. Neither is trained
  on. equal draws: share of a prompt's draws' pairs with the same text; near 1 the policy has stopped exploring."""
