"""The results in words: a table and before/after samples on the screen, and the same as Markdown."""

import textwrap
from collections.abc import Sequence

from rlhf_lab.common.markdown import markdown_table
from rlhf_lab.common.plots import METHOD_LABELS

LABEL_WIDTH = 19
HEADER = ("", "reward", "95%", "vs SFT", "95%", "wins", "KL", "tokens", "R-1", "R-2", "R-L")


def table_rows(results: dict, decoding: str) -> list[tuple[str, ...]]:
    """One row of text cells a policy under HEADER, for decoding "sampled" or "greedy"; lead words and SFT first."""
    lead = results["lead_words"]
    rows = [_row(f"first {lead['words']} words", lead)]
    for name, policy in {"sft": results["sft"], **results["methods"]}.items():
        rows.append(_row(METHOD_LABELS.get(name, name), policy if decoding == "sampled" else policy["greedy"]))
    return rows


def _row(label: str, numbers: dict) -> tuple[str, ...]:
    reward, delta = numbers["reward"], numbers.get("delta_vs_sft")
    return (
        label,
        f"{reward['mean']:.4f}",
        f"{reward['low']:.3f} to {reward['high']:.3f}",
        f"{delta['mean']:+.4f}" if delta else "",
        f"{delta['low']:+.3f} to {delta['high']:+.3f}" if delta else "",
        f"{numbers['win_rate']:.0%}" if "win_rate" in numbers else "",
        f"{numbers['kl']:.2f}" if "kl" in numbers else "",
        f"{numbers['length']:.1f}" if "length" in numbers else "",
        *(f"{numbers['rouge'][name]:.3f}" for name in ("rouge1", "rouge2", "rougeL")),
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def verdict(results: dict) -> list[str]:
    """One sentence a method: does the interval of its sampled reward against SFT exclude zero?"""
    sentences = []
    for name, policy in results["methods"].items():
        delta, label = policy["delta_vs_sft"], METHOD_LABELS.get(name, name)
        numbers = f"{delta['mean']:+.4f} ({delta['low']:+.4f} to {delta['high']:+.4f})"
        if delta["low"] > 0:
            sentences.append(f"{label} beats the SFT model: {numbers}.")
        elif delta["high"] < 0:
            sentences.append(f"{label} is WORSE than the SFT model: {numbers}.")
        else:
            sentences.append(f"{label} does NOT clearly beat the SFT model: {numbers} includes zero.")
    return sentences


def samples_text(results: dict) -> str:
    """Documents with the human summary and every policy's greedy and first sampled one, for the screen."""
    blocks = []
    for item in results["samples"]:
        lines = [_entry("document", item["description"]), _entry("human", item["summary"])]
        for name, texts in item["policies"].items():
            lines.append(_entry(METHOD_LABELS.get(name, name), texts["greedy"]))
            lines.append(_entry("  sampled", texts["sampled"]))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _entry(label: str, text: str) -> str:
    indent = " " * LABEL_WIDTH
    return textwrap.fill(text, 110, initial_indent=label.ljust(LABEL_WIDTH), subsequent_indent=indent)


def screen(results: dict) -> str:
    """All that the command prints at the end."""
    parts = []
    for decoding in ("sampled", "greedy"):
        parts.append(f"{decoding} summaries of {results['evaluation']['documents']} held-out documents")
        parts.append(aligned([HEADER, *table_rows(results, decoding)]) + "\n")
    return "\n".join([*parts, *verdict(results), "", samples_text(results)])


def markdown(results: dict, figure: str, alt: str) -> str:
    """report.md: what was done, both tables, the figure, samples, how to read it, and all settings."""
    pairs, settings, evaluation = results["pairs"], results["settings"], results["evaluation"]
    labelled = {
        "bradley-terry": f"labels drawn by Bradley-Terry on ROUGE-L F1 at temperature {settings['label_temperature']}",
        "argmax": "the higher ROUGE-L F1 preferred",
    }[settings["labels"]]
    sections = [
        "# Preference-tuned summaries of docstrings",
        f"{settings['prompts']} validation documents, which the SFT model has not seen, {settings['candidates']} "
        f"summaries of each drawn from it, best against worst and so on ({settings['pairs_per_prompt']} pairs a "
        f"document), {labelled}: {pairs['pairs']} pairs ({pairs['ties']} ties dropped, {pairs['flipped']} labels "
        f"against the reward). Every method learned from the same pairs, and was measured on "
        f"{evaluation['documents']} held-out documents. The whole took {results['seconds']:.0f} s.",
        "\n".join(f"- {sentence}" for sentence in verdict(results)),
    ]
    for decoding, note in (
        ("sampled", f"{evaluation['samples']} draws a document at temperature 1"),
        ("greedy", "the most likely token at every step"),
    ):
        sections.append(f"## {decoding.capitalize()}: {note}")
        sections.append(markdown_table([HEADER, *table_rows(results, decoding)]))
    sections += [
        f"![{alt}]({figure})",
        "## How to read it",
        HOW_TO_READ,
        "## Samples",
        "Drawn by the seed, not chosen.",
        f"```text\n{samples_text(results)}\n```",
        "## Settings",
        markdown_table([("setting", "value"), *((k, str(v)) for k, v in settings.items())]),
        markdown_table([("version", ""), *results["versions"].items()]),
    ]
    return "\n\n".join(sections) + "\n"


HOW_TO_READ = """\
- reward: mean ROUGE-L F1 against the human summary, stemmed. Intervals: 95%, bootstrap over documents.
- vs SFT: difference to the SFT model on the same documents, resampled in pairs.
- wins: share of comparisons with the SFT model's summary of the same document that are won; ties count half.
- KL: mean over sampled responses of log pi - log pi_ref, summed over the response, in nats. Greedy text estimates none.
- tokens: length of a response with its end-of-text token. R-1, R-2, R-L: ROUGE F1.
- Sampling shows the whole policy, greedy decoding only its peak: a method can raise the one and lower the other. Where
  the greedy reward falls or summaries grow longer while the sampled reward rises, the method over-optimises."""
