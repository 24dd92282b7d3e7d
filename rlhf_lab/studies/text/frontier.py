"""Reward against KL, beside what no learning needs: the SFT model at lower temperatures. Who is above that curve?

A method learns if its sampled reward clears the curve at the method's KL, and its greedy reward clears the SFT model's.
Results that were stored before there was a curve have none, and no method of theirs is said to learn.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from rlhf_lab.common.intervals import Interval, difference_interval, mean_interval, sign
from rlhf_lab.common.plots import GREY
from rlhf_lab.studies.many import holm, weaker
from rlhf_lab.studies.text.measuring import BEST_OF_N, TEMPERED, UNLEARNED
from rlhf_lab.studies.text.paths import Path, draw_path, gain, intervals

# The judges by the name that results.json has for the true reward: in words, and on an axis.
REWARDS = {
    "content": "ROUGE-L F1 against one author's summary",
    "house": "half ROUGE-L F1 against one author's summary, half the rules of the house style",
}
AXES = {"content": "ROUGE-L F1", "house": "content and style"}


def gold_of(results: dict) -> str:
    """The judge that results.json was measured with; "content" where it does not say so."""
    return results["settings"].get("gold", "content")


def methods(paths: Mapping[str, Path]) -> dict[str, Path]:
    """The paths of what was trained, without those that learned nothing."""
    return {arm: path for arm, path in paths.items() if arm not in UNLEARNED}


def above_curve(path: Path, curve: Path, point: int = -1) -> list[float]:
    """Per seed, the sampled reward at a point minus that of SFT at the temperature of the same KL.

    Between two temperatures the curve is a straight line; beyond greedy it stays at greedy's reward.
    """
    found = []
    for seed, kl in enumerate(path["kl"][point]):
        known = sorted(zip(_of_seed(curve, "kl", seed), _of_seed(curve, "gold", seed), strict=True))
        reward = float(np.interp(kl, *zip(*known, strict=True)))
        found.append(path["gold"][point][seed] - reward)
    return found


def over_curve(path: Path, curve: Path, point: int = -1) -> Interval:
    """`above_curve` as a mean over seeds with its interval."""
    return mean_interval(above_curve(path, curve, point))


def curve_contrast(a: Path, b: Path, curve: Path, point: int = -1) -> Interval:
    """`above_curve` of a minus that of b, seed by seed: which is better for its KL?"""
    return difference_interval(above_curve(a, curve, point), above_curve(b, curve, point))


def _of_seed(path: Path, measure: str, seed: int) -> list[float]:
    return [values[seed] for values in path[measure]]


def learned(paths: Mapping[str, Path], arms: Sequence[str] | None = None, point: int = -1) -> dict[str, str]:
    """{arm: "yes", "no", or "not corrected"} at a point: does it learn, which no lower temperature does?

    "yes" by Holm's correction for the number of arms; "not corrected": its own 95% intervals alone say so.
    arms: all methods, if not given. Empty without the curve.
    """
    if TEMPERED not in paths:
        return {}
    arms = list(methods(paths)) if arms is None else arms
    claims = []
    for arm in arms:
        claims.append(weaker(over_curve(paths[arm], paths[TEMPERED], point), gain(paths[arm], "greedy", point)))
    corrected = holm(claims, len(paths[TEMPERED]["kl"][0]))
    words = {}
    for arm, claim, told in zip(arms, claims, corrected, strict=True):
        words[arm] = "yes" if told > 0 else "not corrected" if sign(claim) > 0 else "no"
    return words


def draw_curve(ax: Axes, paths: Mapping[str, Path], *, gained: bool = True) -> None:
    """SFT at lower temperatures as a grey dashed line with T at its points; it ends at greedy, whose reward goes on.

    gained: minus the reward at temperature 1.
    """
    if TEMPERED not in paths:
        return
    curve = paths[TEMPERED]
    draw_path(ax, curve, "kl", "gold", GREY, "_SFT, lower temperature", ".--", gained=gained)
    kls = [interval["mean"] for interval in intervals(curve, "kl")]
    rewards = [interval["mean"] for interval in intervals(curve, "gold")]
    if gained:
        rewards = [gain(curve, "gold", point)["mean"] for point in range(len(kls))]
    ax.axhline(rewards[-1], color=GREY, linewidth=1, linestyle=":", label="_greedy")
    text = {"textcoords": "offset points", "color": GREY, "fontsize": 7.5, "zorder": 5}
    text["path_effects"] = [withStroke(linewidth=2, foreground="white")]  # lines of methods may cross it
    for heat, kl, reward in list(zip(curve["temperature"], kls, rewards, strict=True))[1:-1]:
        ax.annotate(f"T {heat[0]:g}", (kl, reward), (4, -2), ha="left", va="top", **text)
    ends = {"xycoords": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    ax.annotate("SFT, greedy", (0.995, rewards[-1]), (0, 2), **ends, **text)


def root_scale(ax: Axes, furthest: float) -> None:
    """KL on a root scale up to `furthest` nats: rewards are nearly straight on it (Gao et al., arXiv 2210.10760)."""
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    ax.set_xlim(-0.002 * furthest, furthest * 1.05)
    ax.set_xticks([k * k for k in range(20) if k * k <= furthest * 1.05])


def draw_best_of_n(ax: Axes, paths: Mapping[str, Path]) -> None:
    """The best of n samples of SFT as grey squares, to the largest n, which is named."""
    if BEST_OF_N not in paths:
        return
    path = paths[BEST_OF_N]
    draw_path(ax, path, "kl", "gold", GREY, "_best of n", "s:", gained=True)
    end = intervals(path, "kl")[-1]["mean"], gain(path, "gold")["mean"]
    text = {"textcoords": "offset points", "color": GREY, "fontsize": 7.5, "ha": "left", "va": "center"}
    ax.annotate(f"best of {path['n'][-1][0]:.0f}, by gold", end, (5, 0), **text)
