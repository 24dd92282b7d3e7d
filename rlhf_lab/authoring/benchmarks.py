"""The tables of docs/benchmarks.md, each from the JSON that its script in tests/benchmarks writes."""

from collections.abc import Mapping, Sequence

from rlhf_lab.common.markdown import markdown_table

PREFERENCE_STEP = {
    "shape": "shape",
    "model": "model",
    "precision": "precision",
    "prompt": "prompt, tokens",
    "pairs": "pairs",
    "ours_pairs_per_s": "ours, pairs/s",
    "trl_pairs_per_s": "TRL, pairs/s",
    "speed_ratio": "speed",
    "ours_memory_gb": "ours, GB",
    "trl_memory_gb": "TRL, GB",
    "memory_ratio": "memory",
    "limit_share": "share of the limit",
}
COUNTS = {"prompt", "pairs"}


def preference_step_table(rows: Sequence[Mapping]) -> str:
    """Pairs per second and peak memory against TRL's; a number that was not measured stays empty."""
    cells = [[_cell(name, row.get(name)) for name in PREFERENCE_STEP] for row in rows]
    return markdown_table([list(PREFERENCE_STEP.values()), *cells])


def generation_table(measured: Mapping) -> str:
    """Tokens per second of each way to sample, and how often ours is faster, precision by precision."""
    rows = [["method", "precision", "tokens/s", "ours is faster by"]]
    for row in measured["rows"]:
        method, precision = row["method"].split()
        rows.append([method, precision, f"{row['tokens_per_s']:,.0f}", f"{row['ours_is_faster_by']:.1f}x"])
    return markdown_table(rows)


def bandits_table(measured: Mapping) -> str:
    """CPU time of batched online worlds and of the plain loop, and what the batch gains and takes."""
    rows = [["what", "refits", "CPU seconds", "microseconds per refit"]]
    for row in measured["rows"]:
        times = (f"{row['cpu_seconds']:.2f}", f"{row['us_per_refit']:,.0f}")
        rows.append([row["name"], f"{row['refits']:,}", *times])
    gain = f"Per refit the batch is {measured['ratio']:.0f} times faster than the plain loop"
    return f"{markdown_table(rows)}\n\n{gain}; the peak memory of all is {measured['peak_mb']:.0f} MB."


def offline_fit_table(rows: Sequence[Mapping]) -> str:
    """CPU milliseconds of a batch of offline fits and of the plain loop over its worlds, and how far they agree."""
    names = ("beta", "comparisons", "alpha")
    table = [[*names, "ours, ms", "plain loop, ms", "ratio", "Newton steps", "largest difference"]]
    for row in rows:
        setting = (f"{row['beta']:g}", str(row["comparisons"]), f"{row['alpha']:g}")
        times = (f"{row['ours_ms']:.1f}", f"{row['plain_ms']:,.0f}", f"{row['ratio']:.0f}x")
        table.append([*setting, *times, str(row["newton_steps"]), f"{row['same']:.0e}"])
    return markdown_table(table)


def shared_machine_table(measured: Mapping) -> str:
    """Seconds of a small main job alone and beside one busy process, for each setting of torch's threads."""
    rows = [["threads", "alone, s", "beside a busy process, s", "times as long"]]
    for name, row in measured["settings"].items():
        rows.append([name, f"{row['alone']:.0f}", f"{row['shared']:.0f}", f"{row['slowdown']:.2f}x"])
    facts = f"{measured['date']}; torch {measured['torch']}, Python {measured['python']}; {measured['cores']} cores"
    return f"{markdown_table(rows)}\n\n{facts}; medians of {measured['rounds']} rounds."


def _cell(name: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str) or name in COUNTS:
        return "" if value is None else str(value)
    if name == "limit_share":
        return f"{value:.0%}"
    return f"{value:.1f}" if name.endswith("_gb") else f"{value:.2f}" + ("x" if name.endswith("ratio") else "")
