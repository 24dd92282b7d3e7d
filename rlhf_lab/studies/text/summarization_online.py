"""Offline DPO, iterative DPO, VPO online and XPO on real summaries, by the online loop, at equal numbers of labels."""

import tempfile
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import Interval, change, comparison, difference_interval, mean_interval, number, sign
from rlhf_lab.common.plots import label_ends, method_colour, style
from rlhf_lab.studies.text.online_arms import (
    ARMS,
    AS_PUBLISHED,
    BETA,
    CHOICE,
    DPO_ONLINE,
    FRESH,
    LEARNING_RATE,
    OPTIMISM,
    PAIRS,
    iterates,
    loop_settings,
    outcome,
    point,
)
from rlhf_lab.studies.text.paths import collect, contrast, draw_path, intervals
from rlhf_lab.studies.text.summaries import each_seed, open_world

QUESTION = "Do fresh labels, optimism, or pairs with the reference improve DPO on real summaries at equal labels?"
SEEDS = 4


def run(seeds: int, fast: bool) -> dict:
    """What every arm is worth after each iteration, and what became of its comparisons."""
    size = {"held_out": 2, "model": "tiny"} if fast else {"held_out": 60, "model": "small"}
    rounds = {"iterations": 1, "prompts": 8, "max_new_tokens": 16} if fast else {"iterations": 3, "prompts": 80}
    runs = each_seed(one_seed, seeds, size, rounds, together=not fast)
    return {
        "settings": {"seeds": seeds, "beta": BETA, "learning_rate": LEARNING_RATE, **size, **rounds}
        | {"labels": rounds["iterations"] * rounds["prompts"], "alpha": {arm: ARMS[arm].alpha for arm in ARMS}},
        "paths": collect([run["paths"] for run in runs]),
        "comparisons": collect([run["comparisons"] for run in runs]),
    }


def one_seed(seed: int, seeds: int, size: dict, rounds: dict) -> dict:
    """{"paths": {arm: [measures at pi_0 and after each iteration]}, "comparisons": {arm: [one row per iteration]}}."""
    world = open_world(seed, seeds, rounds["iterations"] * rounds["prompts"], **size)
    found: dict = {"paths": {}, "comparisons": {}}
    # One folder: a stage is named by what decides it, so that arms share the stages in which they do not differ.
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        for name, arm in ARMS.items():
            settings = loop_settings(world, arm, rounds, folder)
            rows = iterates(world, settings)
            found["paths"][name] = [point(row, arm, settings) for row in rows]
            found["comparisons"][name] = [outcome(row["pairs"]) for row in rows[1:]]
            last = found["paths"][name][-1]
            world.say(f"{arm.label}: reward {last['gold']:.3f}, KL {last['kl']:.1f} nats")
    return found


def arms_apart(results: dict, a: str, b: str, measure: str = "gold") -> Interval:
    """a - b after all labels, seed by seed."""
    return contrast(results["paths"][a], results["paths"][b], measure)


def pairs_of(arm: str) -> str:
    """Which pairs the arm compares."""
    return PAIRS[ARMS[arm].loop][0]


def sentences(results: dict) -> list[str]:
    """The three claims in one sentence, what was equal and where all arms ended, then claim by claim."""
    settings, optimism = results["settings"], [arms_apart(results, *pair) for pair in OPTIMISM]
    published = settings["alpha"][AS_PUBLISHED[0]]
    return [
        f"with {settings['labels']} labels each, in gold reward (ROUGE-L F1): {against(results, *FRESH[1])}; "
        f"optimism {verdict(optimism)} with alpha = 0; {against(results, *CHOICE[0], name=pairs_of)}",
        *what_was_equal(results),
        f"fresh labels: {against(results, *FRESH[0])}; greedy text: {against(results, *FRESH[1], measure='greedy')}",
        "optimism against alpha = 0 on the same choice of pairs: "
        + "; ".join(bonus(results, *pair) for pair in OPTIMISM),
        f"XPO as published starts with {2 * published:.2%} of a pair's pull, so that what it does shows what chance "
        f"alone does: {bonus(results, *AS_PUBLISHED)}",
        "choice of pairs: "
        + "; ".join(against(results, *pair, name=pairs_of) for pair in CHOICE)
        + "; by chance one interval in 20 leaves out a difference of zero",
        *exploration(results),
    ]


def label_of(arm: str) -> str:
    """The arm in words."""
    return ARMS[arm].label


def against(results: dict, a: str, b: str, measure: str = "gold", name: Callable[[str], str] = label_of) -> str:
    """ "a is higher than b by ..", after all labels; `name` gives the words for both."""
    return comparison(name(a), name(b), arms_apart(results, a, b, measure), ".3f")


def bonus(results: dict, a: str, b: str) -> str:
    """What the bonus does to reward and KL of the same pairs."""
    reward, kl = (arms_apart(results, a, b, measure) for measure in ("gold", "kl"))
    alpha = results["settings"]["alpha"][a]
    return f"{pairs_of(a)}, alpha {alpha:g}: {change('the reward', reward, '.3f')}, {change('the KL', kl, '.1f')} nats"


def verdict(found: list[Interval]) -> str:
    """How many of the intervals say what."""
    signs = [sign(interval) for interval in found]
    counts = [f"{word} it in {signs.count(side)}" for side, word in ((1, "raises"), (-1, "lowers"))]
    return f"{' and '.join(counts)} of {len(found)} comparisons"


def what_was_equal(results: dict) -> list[str]:
    """Labels; not the candidates scored, the passes over pairs, or the KL that they were spent on."""
    paths, settings = results["paths"], results["settings"]
    scores, passes = ({arm: f"{path[what][-1][0]:.0f}" for arm, path in paths.items()} for what in ("scores", "passes"))
    ends = (
        f"{ARMS[arm].label} {number(intervals(path, 'gold')[-1], '.3f')} at {intervals(path, 'kl')[-1]['mean']:.1f}"
        for arm, path in paths.items()
    )
    return [
        f"equal are the labels: one about each of the same {settings['labels']} prompts",
        f"not equal are the candidates scored, {scores['best dpo']} for best/worst (half of them at temperature .7) "
        f"and {scores['current dpo']} for other pairs, and the pairs read in training: {passes['best dpo']} by an "
        f"online arm (all so far, once in each of {settings['iterations']} iterations), {passes['offline']} by offline "
        f"DPO and {passes['offline 2']} in its 2 epochs",
        f"reward at KL, in nats a response, from {number(intervals(paths['offline'], 'gold')[0], '.3f')} of pi_0: "
        + ", ".join(ends),
    ]


def exploration(results: dict) -> list[str]:
    """Equal draws and lost labels of the three choices of pairs, in the last iteration of their DPO arms."""
    asked = results["settings"]["prompts"]
    last = {arm: {k: v[-1] for k, v in results["comparisons"][arm].items()} for arm in DPO_ONLINE}
    alike = {arm: row["identical_share"] for arm, row in last.items()}
    lost = {arm: [1 - pairs / asked for pairs in row["pairs"]] for arm, row in last.items()}

    def listed(shares: dict[str, list[float]]) -> str:
        return ", ".join(f"{number(mean_interval(v), '.1%')} for {pairs_of(arm)}" for arm, v in shares.items())

    a, b = CHOICE[0]
    words = comparison(pairs_of(a), pairs_of(b), difference_interval(alike[a], alike[b]), ".1%")
    return [
        f"in the last iteration of DPO the share of draws with the same text is {listed(alike)} ({words})",
        f"there the labels lost to ties and equal texts are {listed(lost)}",
    ]


def draw(results: dict) -> Figure:
    """What was won against labels and against KL, and every claim as a difference with its interval."""
    paths = results["paths"]
    with style():
        fig, (labels, kl, claims) = plt.subplots(1, 3, figsize=(16, 4.4), width_ratios=(1, 1, 0.8))
        for arm in ("offline", "offline 2", *DPO_ONLINE):
            draw_path(labels, paths[arm], "labels", "gold", *look(arm), gained=True)
        for arm in (*DPO_ONLINE, *(pair[0] for pair in OPTIMISM)):
            draw_path(kl, paths[arm], "kl", "gold", *look(arm), gained=True)
        labels.set(title="DPO, on which pairs", xlabel="labels", ylabel="gold reward against $\\pi_0$'s, ROUGE-L F1")
        kl.set(title="with and without optimism", xlabel=r"KL to $\pi_0$, nats a response")
        draw_claims(claims, results)
        top = kl.get_ylim()[1]
        kl.set_ylim(top=top + 0.35 * (top - kl.get_ylim()[0]))  # room for a legend: the ends lie too near for labels
        kl.legend(loc="upper left", fontsize=7.5, ncols=2)
        label_ends(labels)
    return fig


def look(arm: str) -> tuple[str, str, str]:
    """Colour, label and line: the objective gives the colour, the choice of pairs the line."""
    line = "D-." if ARMS[arm].offline else PAIRS[ARMS[arm].loop][1]
    return method_colour(ARMS[arm].objective), ARMS[arm].label, line


def draw_claims(ax: Axes, results: dict) -> None:
    """One row a claim: the difference in gold reward after all labels."""
    pairs = (*FRESH, *OPTIMISM, AS_PUBLISHED, *CHOICE)
    names = []
    for row, (a, b) in enumerate(pairs):
        interval = arms_apart(results, a, b)
        ax.plot([interval["low"], interval["high"]], [row, row], color=method_colour(ARMS[a].objective), linewidth=2)
        ax.plot(interval["mean"], row, "o", color=method_colour(ARMS[a].objective))
        names.append(" - ".join(pairs_of(arm) if (a, b) in CHOICE else ARMS[arm].label for arm in (a, b)))
    ax.axvline(0, color="#999999", linewidth=0.8)
    ax.set_yticks(range(len(pairs)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(title=f"after {results['settings']['labels']} labels", xlabel="difference in gold reward, 95% interval")


def alt(results: dict) -> str:
    """The ends of the paths, and the claims."""
    ends = [
        f"{ARMS[arm].label} {intervals(path, 'gold')[-1]['mean']:.3f} at {intervals(path, 'kl')[-1]['mean']:.1f} nats"
        for arm, path in results["paths"].items()
    ]
    claims = [f"{ARMS[a].label} minus {ARMS[b].label} {number(arms_apart(results, a, b), '.3f')}" for a, b in FRESH]
    return f"Three panels. Gold reward at the end: {', '.join(ends)}. Differences: {', '.join(claims)}."
