"""Offline DPO, iterative DPO, VPO online and XPO on real summaries, by the online loop, at equal numbers of labels."""

import tempfile
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import Interval, change, comparison, mean_interval, number, sign
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
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import each_seed, open_world
from rlhf_lab.studies.wording import Notes, Table, listed, sentence

QUESTION = "Do fresh labels, optimism, or pairs with the reference improve DPO on real summaries at equal labels?"
SEEDS = 4


# How the table prints a measure.
FORMS = {"gold": ".3f", "greedy": ".3f", "kl": ".1f"}
# What each question is about, and the differences of two arms that answer it.
CLAIMS = {
    "fresh labels at equal passes": FRESH[1:],
    "optimism": OPTIMISM,
    "pairs with the reference": CHOICE[:1],
}


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


def answer(results: dict) -> str:
    """What raises the reward, what lowers it, and for what no effect can be told."""
    groups: dict[str, list[str]] = {"raised": [], "lowered": [], "unclear": []}
    for name, pairs in CLAIMS.items():
        signs = {sign(arms_apart(results, *pair)) for pair in pairs} - {0}
        groups[{(1,): "raised", (-1,): "lowered"}.get(tuple(signs), "unclear")].append(name)
    parts = []
    if groups["raised"]:
        parts.append(f"{listed(groups['raised'])} raised the reward")
    if groups["lowered"]:
        parts.append(f"{listed(groups['lowered'])} lowered the reward")
    if groups["unclear"]:
        parts.append(f"for {listed(groups['unclear'])} no effect can be told")
    return sentence(", and ".join(parts))


def table(results: dict) -> Table:
    """A row an arm: the reward after all labels and against its control, KL, labels and pairs read."""
    paths = results["paths"]
    controls = dict((FRESH[1], *OPTIMISM, AS_PUBLISHED, CHOICE[0]))
    header = ["arm", "gold reward", "minus its control's", "control", "greedy reward", "KL to pi_0, nats"]
    rows = [[*header, "candidates scored", "pairs read in training"]]
    for arm, path in paths.items():
        ends = {measure: number(intervals(path, measure)[-1], form) for measure, form in FORMS.items()}
        control = controls.get(arm)
        against = number(arms_apart(results, arm, control), "+.3f") if control else ""
        counts = [f"{path[what][-1][0]:.0f}" for what in ("scores", "passes")]
        name = ARMS[control].label if control else ""
        rows.append([ARMS[arm].label, ends["gold"], against, name, ends["greedy"], ends["kl"], *counts])
    return rows


def notes(results: dict) -> Notes:
    """What was equal and what was not, the claims one by one, lost labels, and what the seeds share."""
    settings, published = results["settings"], results["settings"]["alpha"][AS_PUBLISHED[0]]
    comparisons = (*FRESH, *OPTIMISM, AS_PUBLISHED, *CHOICE)
    return Notes(
        equal=[
            f"every arm has {settings['labels']} labels, one about each of the same prompts",
            "candidates scored and pairs read in training are not equal: the table has both",
            f"an online arm reads all pairs so far once in each of {settings['iterations']} iterations",
            "the KL is not equal: the figure has the reward at its KL",
        ],
        found=[
            *(f"fresh labels: {against(results, *pair)}" for pair in FRESH),
            *(f"optimism, {bonus(results, *pair)}" for pair in OPTIMISM),
            f"XPO as published starts with {2 * published:.2%} of a pair's pull, and so shows what chance alone does: "
            f"{bonus(results, *AS_PUBLISHED)}",
            *(f"choice of pairs: {against(results, *pair, name=pairs_of)}" for pair in CHOICE),
            *exploration(results),
        ],
        limits=[
            *sharing_notes(settings["seeds"], settings["labels"], settings["held_out"]),
            f"the {len(comparisons)} differences are not corrected for their number: about one interval in 20 leaves "
            "out zero by chance",
            "the labels come from the gold reward itself; a learned judge would drift",
            f"one small model, {settings['iterations']} iterations and one learning rate",
        ],
    )


def arms_apart(results: dict, a: str, b: str, measure: str = "gold") -> Interval:
    """a - b after all labels, seed by seed."""
    return contrast(results["paths"][a], results["paths"][b], measure)


def pairs_of(arm: str) -> str:
    """Which pairs the arm compares."""
    return PAIRS[ARMS[arm].loop][0]


def label_of(arm: str) -> str:
    """The arm in words."""
    return ARMS[arm].label


def against(results: dict, a: str, b: str, name: Callable[[str], str] = label_of) -> str:
    """ "a is higher than b by ..", after all labels; `name` gives the words for both."""
    return comparison(name(a), name(b), arms_apart(results, a, b), ".3f")


def bonus(results: dict, a: str, b: str) -> str:
    """What the bonus does to reward and KL of the same pairs."""
    reward, kl = (arms_apart(results, a, b, measure) for measure in ("gold", "kl"))
    alpha = results["settings"]["alpha"][a]
    return f"{pairs_of(a)}, alpha {alpha:g}: {change('the reward', reward, '.3f')}, {change('the KL', kl, '.1f')} nats"


def exploration(results: dict) -> list[str]:
    """Equal draws and lost labels of the three choices of pairs, in the last iteration of their DPO arms."""
    asked, told_arms = results["settings"]["prompts"], []
    for arm in DPO_ONLINE:
        last = {name: values[-1] for name, values in results["comparisons"][arm].items()}
        lost = mean_interval([1 - pairs / asked for pairs in last["pairs"]])
        told_arms.append(
            f"{pairs_of(arm)}, last iteration: {number(mean_interval(last['identical_share']), '.1%')} of the draws "
            f"have the same text, and {number(lost, '.1%')} of the labels are lost to ties and equal texts"
        )
    return told_arms


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
