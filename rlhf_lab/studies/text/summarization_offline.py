"""DPO, WPO, pessimistic VPO and RPO on the same comparisons of real summaries, over alpha and epochs."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from rlhf_lab.common.intervals import comparison, number
from rlhf_lab.common.plots import OKABE_ITO, label_ends, method_colour, style
from rlhf_lab.objective import Objective, preset
from rlhf_lab.studies.text.paths import Path, collect, contrast, draw_path, gain, intervals, with_measure
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import World, draw_summaries, each_seed, measure, open_world, trained
from rlhf_lab.studies.wording import Notes, Table, told
from rlhf_lab.training.preference import train_preference
from rlhf_lab.workflow.pairs import make_pairs, pair_examples
from rlhf_lab.workflow.settings import PairSettings

QUESTION = "Does pessimism keep the reward of real summaries where DPO trains too long?"
SEEDS = 4

BETA, LEARNING_RATE, CANDIDATES, LABEL_TEMPERATURE = 0.1, 1e-4, 8, 0.05
ARMS: dict[str, Objective] = {
    "dpo": preset("dpo", beta=BETA),
    "wpo": preset("wpo", beta=BETA),
    "vpo .05": preset("vpo-offline", beta=BETA, alpha=0.05),
    "vpo .2": preset("vpo-offline", beta=BETA, alpha=0.2),
    "vpo 1": preset("vpo-offline", beta=BETA, alpha=1.0),
    "rpo": preset("rpo"),
}
LOOKS = {
    "dpo": ("DPO", method_colour("dpo"), "o-"),
    "wpo": ("WPO", method_colour("wpo"), "o-"),
    "vpo .05": ("VPO offline, alpha .05", method_colour("vpo-offline"), "o:"),
    "vpo .2": ("VPO offline, alpha .2", method_colour("vpo-offline"), "o-"),
    "vpo 1": ("VPO offline, alpha 1", method_colour("vpo-offline"), "o--"),
    "rpo": ("RPO, beta .01", method_colour("rpo"), "o-"),
}


def run(seeds: int, fast: bool) -> dict:
    """Gold and greedy reward, KL and length of every method after each number of epochs."""
    size = {"documents": 6, "held_out": 2, "model": "tiny"} if fast else {"documents": 200, "held_out": 100}
    epochs = [1, 2] if fast else [1, 2, 4, 6]
    runs = each_seed(one_seed, seeds, size, epochs, together=not fast)
    return {
        "settings": {"seeds": seeds, "beta": BETA, "learning_rate": LEARNING_RATE, "candidates": CANDIDATES}
        | {"label_temperature": LABEL_TEMPERATURE, "epochs": epochs, **size},
        "pairs": [run.pop("pairs") for run in runs],
        "paths": collect(runs),
    }


def one_seed(seed: int, seeds: int, size: dict, epochs: list[int]) -> dict:
    """{arm: [measures of pi_0, and after each number of epochs]}, and the number of pairs."""
    world = open_world(seed, seeds, **size)
    candidates = draw_summaries(world, world.model, world.documents, CANDIDATES)
    labels = PairSettings(labels="bradley-terry", label_temperature=LABEL_TEMPERATURE)
    pairs, _ = make_pairs(candidates, labels, seed)
    examples, start = pair_examples(pairs, world.ids(world.documents)), measure(world, world.model)
    return {"pairs": len(pairs)} | {arm: [start, *follow(world, arm, examples, epochs)] for arm in ARMS}


def follow(world: World, arm: str, examples: list, epochs: list[int]) -> list[dict[str, float]]:
    """The measures along one training run."""

    def train_run(settings):
        return train_preference(world.folder, None, examples, ARMS[arm], settings)

    found = []
    for epoch, model in trained(world, examples, train_run, epochs, LEARNING_RATE):
        found.append(measure(world, model))
        world.say(f"{LOOKS[arm][0]}, {epoch} epochs: reward {found[-1]['gold']:.3f}, KL {found[-1]['kl']:.1f} nats")
    return found


def answer(results: dict) -> str:
    """VPO offline (alpha .2) against DPO after the last epoch."""
    paths, last = results["paths"], results["settings"]["epochs"][-1]
    difference = contrast(paths["vpo .2"], paths["dpo"], "gold")
    size = f"{abs(difference['mean']):.3f}"
    word = told(
        difference,
        f"Yes: after {last} epochs VPO offline keeps {size} more sampled reward than DPO",
        f"No: after {last} epochs VPO offline has {size} less sampled reward than DPO",
        f"After {last} epochs no difference in sampled reward between VPO offline and DPO can be told",
    )
    return f"{word}, at a KL of {_end(paths['vpo .2'], 'kl')} nats against {_end(paths['dpo'], 'kl')}."


def table(results: dict) -> Table:
    """A row a method: both rewards against SFT's and since the first epoch, and the KL."""
    first, last = results["settings"]["epochs"][0], results["settings"]["epochs"][-1]
    rows = [["method", f"sampled reward against SFT's, {last} epochs", f"sampled, from epoch {first} to {last}"]]
    rows[0] += [
        "sampled, minus DPO's",
        "greedy reward against SFT's",
        f"greedy, from epoch {first} to {last}",
        "KL to SFT, nats a response",
    ]
    for arm, path in results["paths"].items():
        sampled, greedy = _gains(path, "gold"), _gains(path, "greedy")
        against = "" if arm == "dpo" else number(contrast(path, results["paths"]["dpo"], "gold"), "+.3f")
        rows.append([LOOKS[arm][0], *sampled, against, *greedy, number(intervals(path, "kl")[-1], ".1f")])
    return rows


def _gains(path: Path, measure: str) -> list[str]:
    """What the measure has changed by at the end, since pi_0 and since the first epoch."""
    return [number(gain(path, measure, since=since), "+.3f") for since in (0, 1)]


def notes(results: dict) -> Notes:
    """What was equal, what alpha and WPO's weights do, and what the seeds share."""
    settings, paths = results["settings"], results["paths"]
    first, last = settings["epochs"][0], settings["epochs"][-1]
    drift = contrast(paths["dpo"], paths["wpo"], "gold", since=1)
    less = told(drift, "keeps less than", "keeps more than", "does not detectably differ from")
    found = [
        comparison("alpha 1", f"alpha {small}", contrast(paths["vpo 1"], paths[f"vpo {small}"], "gold"), ".3f")
        for small in (".05", ".2")
    ]
    return Notes(
        equal=[
            f"all methods train on the same comparisons of {settings['candidates']} summaries of SFT, at learning rate "
            f"{settings['learning_rate']:g}",
            f"beta is {settings['beta']} for all but RPO, which has its paper's .01",
            "epochs are equal, and the KL that they lead to is not: the first panel of the figure has reward at its KL",
        ],
        found=[
            *(f"sampled reward, VPO offline: {words}" for words in found),
            f"from epoch {first} to {last} WPO {less} DPO in sampled reward: DPO's change minus WPO's is "
            f"{number(drift, '+.3f')}",
        ],
        limits=[
            *sharing_notes(settings["seeds"], settings["documents"], settings["held_out"]),
            "the reward is ROUGE-L F1 against one author's summary; a reader may see it otherwise",
            "one small model and one learning rate; DPO at an earlier epoch or a larger beta is not compared here",
            f"{len(paths)} methods are read without a correction for their number",
        ],
    )


def _end(path: dict, name: str) -> str:
    return f"{intervals(path, name)[-1]['mean']:.1f}"


def draw(results: dict) -> Figure:
    """Sampled reward against KL along training; sampled and greedy reward against epochs."""
    epochs = [0, *results["settings"]["epochs"]]
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(13.0, 4.0))
        for arm, path in results["paths"].items():
            label, colour, line = LOOKS[arm]
            shown = with_measure(path, "epochs", epochs)
            draw_path(axes[0], shown, "kl", "gold", colour, label, line, gained=True)
            draw_path(axes[1], shown, "epochs", "gold", colour, label, line, gained=True)
            draw_path(axes[2], shown, "epochs", "greedy", colour, label, line, gained=True)
        axes[0].set(title="sampled, along training", xlabel="KL to the SFT model, nats a response")
        axes[1].set(title="sampled", xlabel="epochs")
        axes[2].set(title="greedy", xlabel="epochs")
        axes[0].set_ylabel("reward against SFT's, ROUGE-L F1")
        for ax in axes:
            ax.axhline(0, color=OKABE_ITO["black"], linewidth=0.8, label="_sft")
        label_ends(axes[2])
    return fig


def alt(results: dict) -> str:
    """Where every method ends."""
    last = results["settings"]["epochs"][-1]
    ends = []
    for arm, path in results["paths"].items():
        sampled, greedy = (intervals(path, name)[-1]["mean"] for name in ("gold", "greedy"))
        ends.append(f"{LOOKS[arm][0]} {sampled:.3f} sampled, {greedy:.3f} greedy, {_end(path, 'kl')} nats")
    begin = results["paths"]["dpo"]
    sft = " and ".join(f"{intervals(begin, name)[0]['mean']:.3f}" for name in ("gold", "greedy"))
    return f"Reward along training, from {sft} of the SFT model; after {last} epochs {'; '.join(ends)}."
