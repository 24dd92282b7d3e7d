"""What policies gained and what they paid: pictures and tables of the numbers of `workflow.measures`.

A row is `policy_measures` of a policy, with its method's name as "policy", as results.json holds it.
"""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from rlhf_lab.common.plots import GREY, METHOD_LABELS, OKABE_ITO, label_ends, method_colour
from rlhf_lab.judges.style import StyleParts
from rlhf_lab.workflow.measures import content_and_style

Interval = Mapping[str, float]  # {mean, low, high}


def signed(value: Interval) -> str:
    """A difference with its interval: "+0.063 (+0.041 to +0.085)"."""
    return f"{value['mean']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"


def name_of(row: Mapping) -> str:
    """A policy's name for readers: its "label" if it has one, else that of its method."""
    return row.get("label") or METHOD_LABELS.get(row["policy"], row["policy"])


def draw_frontier(ax: Axes, tempered: Sequence[dict], paths: Sequence[Sequence[dict]], column: str) -> str:
    """Reward against KL: the paths of policies from SFT on, beside SFT's own over temperatures in grey; returns words.

    tempered: of `tempered_measures`. paths: rows in the order of training, the SFT model's first. column: the reward,
    such as "gold" or "rougeL". Circles are sampled text; a row with "greedy_kl", the KL of its greedy text in nats, has
    an open square there too. A second path of one method is dashed.
    """
    _draw_temperatures(ax, tempered, column)
    methods: list[str] = []
    for path in paths:
        end = path[-1]
        line = "--" if end["policy"] in methods else "-"
        kl, rewards = [row["kl"]["mean"] for row in path], [row[column]["reward"] for row in path]
        look = {"color": method_colour(end["policy"]), "linewidth": 1.4, "markersize": 5}
        ax.plot(kl, [v["mean"] for v in rewards], "o", linestyle=line, **look, label=name_of(end))
        ax.vlines(kl[1:], [v["low"] for v in rewards[1:]], [v["high"] for v in rewards[1:]], look["color"])
        if "greedy_kl" in end:
            ax.get_lines()[-1].set_label("_sampled")
            greedy = (end["greedy_kl"], end[column]["greedy"]["reward"]["mean"])
            xs, ys = zip((kl[-1], rewards[-1]["mean"]), greedy, strict=True)
            ax.plot(xs, ys, "s", linestyle=":", fillstyle="none", markevery=[1], **look, label=name_of(end))
        methods.append(end["policy"])
    ax.margins(x=0.09)  # room for the first temperature's name
    label_ends(ax)
    for text in ax.texts:  # a path may run on below another one's name
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    ax.set(xlabel="KL to SFT, nats per summary")
    return "; ".join([_told("SFT, greedy", tempered[-1]["kl"], tempered[-1][column]), *map(_ends(column), paths)])


def _draw_temperatures(ax: Axes, tempered: Sequence[dict], column: str) -> None:
    kl, rewards = [row["kl"]["mean"] for row in tempered], [row[column] for row in tempered]
    ax.plot(kl, [v["mean"] for v in rewards], ".--", color=GREY, linewidth=1.2, label="SFT")
    ax.vlines(kl, [v["low"] for v in rewards], [v["high"] for v in rewards], GREY, linewidth=0.8)
    place = {"xytext": (-4, 5), "textcoords": "offset points", "ha": "right", "fontsize": 8, "color": GREY}
    for x, value, row in zip(kl, rewards, tempered, strict=True):
        ax.annotate(f"T {row['temperature']:g}", (x, value["mean"]), **place)


def _ends(column: str) -> Callable[[Sequence[dict]], str]:
    """Words for the end of a path."""

    def told(path: Sequence[dict]) -> str:
        end = path[-1]
        greedy = f", greedy {end[column]['greedy']['reward']['mean']:.3f}"
        return _told(name_of(end), end["kl"], end[column]["reward"]) + greedy

    return told


def draw_halves(ax: Axes, names: Sequence[str], parts: Sequence[Mapping[str, float]]) -> str:
    """Bars of the house reward, made of half the content and half the style, the first name on top; returns words.

    parts: means of `part_means`, {"rougeL", "imperative", "sentence", "short", "found", ..}.
    """
    told = []
    for row, (name, part) in enumerate(zip(names, parts, strict=True)):
        content, style = content_and_style(part)
        ax.barh(row, content / 2, color=OKABE_ITO["blue"], height=0.62, label="_" if row else "half the content")
        ax.barh(row, style / 2, left=content / 2, color="#CCCCCC", height=0.62, label="_" if row else "half the style")
        ax.annotate(f"{content:.3f}", (content / 4, row), va="center", ha="center", color="white", fontsize=9)
        total = (content + style) / 2
        ax.annotate(f"{total:.3f}", (total, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
        told.append(f"{name} {total:.3f} (content {content:.3f}, style {style:.3f})")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.grid(False, axis="y")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2)
    return "; ".join(told)


def gains_table(rows: Sequence[Mapping], column: str) -> tuple[list[str], list[tuple]]:
    """Header and a row a policy: its gains with intervals, and what they cost. column: "gold", "rougeL" or "score"."""
    header = ["", "sampled, against SFT at its KL", "greedy, against SFT", "KL, nats", "tokens"]
    table = []
    for row in rows:
        gains = (signed(row[column]["vs_tempered"]), signed(row[column]["greedy"]["delta_vs_sft"]))
        table.append((name_of(row), *gains, row["kl"]["mean"], row["length"]["mean"]))
    return header, table


def rules_table(names: Sequence[str], parts: Sequence[Mapping[str, float]]) -> tuple[list[str], list[tuple]]:
    """Header and a row a name: content, style, and the share of summaries that keep each rule of the house."""
    header = ["", "content", "style", *StyleParts._fields]
    table = []
    for name, part in zip(names, parts, strict=True):
        table.append((name, *content_and_style(part), *(part[rule] for rule in StyleParts._fields)))
    return header, table


def draw_steps(axes: Sequence[Axes], histories: Mapping[str, Sequence[Mapping]], titles: Mapping[str, str]) -> None:
    """A panel for each logged number over the steps of training, a line for each method.

    histories: {method: rows that were logged}. titles: {name of the number: title of its panel}.
    """
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for method, history in histories.items():
            logged = [row for row in history if name in row]
            steps, values = [row["step"] for row in logged], [row[name] for row in logged]
            ax.plot(steps, values, color=method_colour(method), label=METHOD_LABELS[method])
        ax.axhline(0, color=GREY, linestyle=":", linewidth=1)
        ax.set(title=title, xlabel="step")
        label_ends(ax)


def _told(name: str, kl: Interval, reward: Interval) -> str:
    return f"{name}: reward {reward['mean']:.3f} at {kl['mean']:.1f} nats"
