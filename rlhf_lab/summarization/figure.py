"""One figure of the job: rewards, sampled and greedy side by side, and what each policy paid for them in KL."""

from pathlib import Path

from matplotlib.figure import Figure

from rlhf_lab.common.plots import METHOD_LABELS, interval_bars, method_colour, style


def draw_figure(results: dict) -> Figure:
    """The matplotlib Figure of a `results.json`: left rewards with 95% intervals, right sampled reward against KL."""
    policies = {"sft": results["sft"], **results["methods"]}
    with style():
        figure = Figure(figsize=(9.6, 1.6 + 0.6 * len(policies)))
        rewards, frontier = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_rewards(rewards, policies, results["lead_words"])
        _draw_frontier(frontier, policies)
    return figure


def save_figure(results: dict, path: Path) -> str:
    """Write the PNG; returns its description in words, for readers who cannot see it."""
    draw_figure(results).savefig(path, dpi=130, metadata={"Software": None})
    return describe(results)


def describe(results: dict) -> str:
    """The figure's numbers as a sentence."""
    parts = []
    for name, p in {"sft": results["sft"], **results["methods"]}.items():
        sampled, greedy = p["reward"]["mean"], p["greedy"]["reward"]["mean"]
        parts.append(f"{METHOD_LABELS.get(name, name)} {sampled:.3f} sampled and {greedy:.3f} greedy")
    return "Mean reward (ROUGE-L F1) of each policy: " + "; ".join(parts) + "."


def _draw_rewards(ax, policies: dict, lead: dict) -> None:
    names = list(policies)
    for decoding, offset, hatch in (("sampled", -0.2, None), ("greedy", 0.2, "///")):
        rewards = [(p if decoding == "sampled" else p["greedy"])["reward"] for p in policies.values()]
        columns = ([r[part] for r in rewards] for part in ("mean", "low", "high"))
        interval_bars(ax, names, *columns, offset=offset, thickness=0.36, hatch=hatch)
    ax.axvline(lead["reward"]["mean"], color="black", linestyle=":", linewidth=1)
    ax.set_title(
        f"Reward on held-out documents: sampled (plain), greedy (hatched)\ndotted: first {lead['words']} words"
    )
    ax.set_xlabel("ROUGE-L F1, 95% interval over documents")


def _draw_frontier(ax, policies: dict) -> None:
    for name, p in policies.items():
        reward, kl, ends = p["reward"], p["kl"], p["kl_interval"]
        colour = method_colour(name)
        ax.plot([ends["low"], ends["high"]], [reward["mean"]] * 2, color=colour, linewidth=1.3)
        ax.plot([kl] * 2, [reward["low"], reward["high"]], color=colour, linewidth=1.3)
        ax.plot(kl, reward["mean"], "o", color=colour)
        ax.annotate(
            METHOD_LABELS.get(name, name), (kl, reward["mean"]), xytext=(6, 6), textcoords="offset points", color=colour
        )
    ax.set_title("What it cost")
    ax.set_xlabel("KL to the SFT model, nats per response")
    ax.set_ylabel("sampled reward")
    ax.margins(0.2)
