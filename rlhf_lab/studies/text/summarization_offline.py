"""DPO, WPO, pessimistic VPO and RPO on the same comparisons of real summaries, over alpha and epochs."""

from rlhf_lab.common.intervals import change, comparison, number, sign
from rlhf_lab.studies.many import correction_note
from rlhf_lab.studies.text.frontier import REWARDS, curve_contrast, gold_of, learned, methods, over_curve
from rlhf_lab.studies.text.measuring import BEST_OF_N, TEMPERED, best_of, measure, sft_curve
from rlhf_lab.studies.text.offline_arms import ARMS, BETA, LEARNING_RATE, PESSIMISTIC
from rlhf_lab.studies.text.offline_figure import alt, draw
from rlhf_lab.studies.text.paths import collect, contrast, gain, intervals
from rlhf_lab.studies.text.sharing import sharing_notes
from rlhf_lab.studies.text.summaries import GOLD, World, draw_summaries, each_seed, open_world, trained
from rlhf_lab.studies.wording import Notes, Table, listed, sentence
from rlhf_lab.training.preference import train_preference
from rlhf_lab.workflow.pairs import make_pairs, pair_examples
from rlhf_lab.workflow.settings import PairSettings

__all__ = ["QUESTION", "SEEDS", "alt", "answer", "draw", "notes", "run", "table"]

QUESTION = "Which method learns from comparisons of real summaries what no lower temperature gives?"
SEEDS = 4

CANDIDATES, TEMPERATURES, LABEL_TEMPERATURE = 8, (1.0, 0.7), 0.05
LABELS = PairSettings(labels="bradley-terry", label_temperature=LABEL_TEMPERATURE, pairs_per_prompt=2)


def run(seeds: int, fast: bool) -> dict:
    """The measures of every method after each number of epochs, and of SFT at lower temperatures and by best of n."""
    size = {"documents": 6, "held_out": 2, "model": "tiny"} if fast else {"documents": 160, "held_out": 100}
    epochs = [1, 2]
    runs = each_seed(one_seed, seeds, size, epochs, together=not fast)
    return {
        "settings": {"seeds": seeds, "gold": GOLD, "beta": BETA, "learning_rate": LEARNING_RATE}
        | {"candidates": CANDIDATES, "temperatures": TEMPERATURES, "pairs_per_prompt": LABELS.pairs_per_prompt}
        | {"label_temperature": LABEL_TEMPERATURE, "epochs": epochs, **size},
        "pairs": [run.pop("pairs") for run in runs],
        "paths": collect(runs),
    }


def one_seed(seed: int, seeds: int, size: dict, epochs: list[int]) -> dict:
    """{arm: [measures of pi_0, and after each number of epochs]}, and the number of pairs."""
    world = open_world(seed, seeds, **size)
    candidates = draw_summaries(world, world.model, world.documents, CANDIDATES, temperatures=TEMPERATURES)
    pairs, _ = make_pairs(candidates, LABELS, seed)
    examples, start = pair_examples(pairs, world.ids(world.documents)), measure(world, world.model)
    found = {TEMPERED: sft_curve(world, start), BEST_OF_N: best_of(world)}
    world.say(f"SFT: reward {start['gold']:.3f} sampled, {start['greedy']:.3f} greedy; {len(pairs)} pairs")
    found |= {arm: [start, *follow(world, arm, examples, epochs)] for arm in ARMS}
    return {"pairs": len(pairs)} | found


def follow(world: World, name: str, examples: list, epochs: list[int]) -> list[dict[str, float]]:
    """The measures along one training run."""
    arm, found = ARMS[name], []

    def train_run(settings):
        return train_preference(world.folder, None, examples, arm.objective, settings)

    for epoch, model in trained(world, examples, train_run, epochs, arm.learning_rate):
        found.append(measure(world, model))
        rewards = " and ".join(f"{found[-1][name]:.3f}" for name in ("gold", "greedy"))
        world.say(f"{arm.label}, {epoch} epochs: reward {rewards}, KL {found[-1]['kl']:.1f} nats")
    return found


# What was found


def answer(results: dict) -> str:
    """Who learns, after the last epoch, by both rewards and after the correction."""
    words = learned(results["paths"])
    names = names_of([arm for arm, word in words.items() if word == "yes"])
    if not names:
        return "No method is shown to learn what no lower temperature gives."
    rest = "; the others are not shown to" if set(words.values()) != {"yes"} else ""
    verb = "learns" if len(names) == 1 else "learn"
    return sentence(f"{listed(names)} {verb} what no lower temperature gives{rest}")


def names_of(arms: list[str]) -> list[str]:
    """The arms in words, the alphas of VPO offline together."""
    names = [ARMS[arm].label for arm in arms if arm not in PESSIMISTIC]
    alphas = [ARMS[arm].label.split()[-1] for arm in arms if arm in PESSIMISTIC]
    return names + ([f"VPO offline at alpha {listed(alphas)}"] if alphas else [])


def table(results: dict) -> Table:
    """A row a method after the last epoch: above the curve, greedy, KL, the greedy parts, and whether it learns."""
    paths, last = results["paths"], results["settings"]["epochs"][-1]
    words = learned(paths)
    rows = [[f"method, {last} epochs", "sampled reward over SFT's at its KL", "greedy reward over SFT's", "learns"]]
    rows[0] += ["KL to SFT, nats a response", "greedy: content", "greedy: style", "greedy: tokens"]
    for arm, path in methods(paths).items():
        row = [ARMS[arm].label, number(over_curve(path, paths[TEMPERED]), "+.3f"), number(gain(path, "greedy"), "+.3f")]
        row += [words[arm], number(intervals(path, "kl")[-1], ".1f"), number(gain(path, "greedy content"), "+.3f")]
        rows.append([*row, number(gain(path, "greedy style"), "+.3f"), number(gain(path, "greedy length"), "+.1f")])
    return rows


def notes(results: dict) -> Notes:
    """What was equal, who learns after fewer epochs, what alpha and less training do, and what the seeds share."""
    settings, paths = results["settings"], results["paths"]
    temperatures = listed([f"{temperature:g}" for temperature in settings["temperatures"]])
    return Notes(
        equal=[
            f"all methods train on the same {settings['pairs_per_prompt']} comparisons of each document, of "
            f"{settings['candidates']} summaries of SFT at temperatures {temperatures}",
            f"the learning rate is {settings['learning_rate']:g} but where the name says another",
            f"beta is {settings['beta']} for all but RPO, which has the .01 of its paper and the alpha of its released "
            "code, .005",
            "epochs are equal, and the KL that they lead to is not: the table compares each method with SFT at the "
            "temperature of the same KL",
        ],
        found=[*epoch_notes(results), *rivals(results), *best_of_n_notes(results)],
        limits=[
            *sharing_notes(settings["seeds"], settings["documents"], settings["held_out"]),
            f"the reward is {REWARDS[gold_of(results)]}; a reader may see it otherwise",
            correction_note({"who learns": len(methods(paths))}),
            "one small model",
        ],
    )


def epoch_notes(results: dict) -> list[str]:
    """Who learns after each number of epochs, and what the last epochs did to the greedy reward."""
    paths, epochs = results["paths"], results["settings"]["epochs"]
    found = []
    for point, epoch in enumerate(epochs[:-1], start=1):
        names = names_of([arm for arm, word in learned(paths, point=point).items() if word == "yes"])
        found.append(
            f"after {epoch} epoch{'s' * (epoch > 1)} {listed(names) or 'no method'} learns by the same measure"
        )
    moved = {arm: gain(path, "greedy", since=1) for arm, path in methods(paths).items()}
    for word, direction in (("falls", -1), ("rises", 1)):
        names = [
            f"{ARMS[arm].label} {number(change, '+.3f')}" for arm, change in moved.items() if sign(change) == direction
        ]
        if names:
            found.append(f"from epoch {epochs[0]} to {epochs[-1]} the greedy reward {word} with {listed(names)}")
    return found


def rivals(results: dict) -> list[str]:
    """Methods against one another after the last epoch: pessimism against DPO and DPO trained less, WPO, and alpha."""
    paths, found = results["paths"], []
    pairs = (("vpo .2", "dpo"), ("vpo 1", "dpo slow"), ("vpo .2", "dpo slow"), ("wpo", "dpo"), ("vpo 1", "vpo .2"))
    for a, b in pairs:
        over = curve_contrast(paths[a], paths[b], paths[TEMPERED])
        greedy = change("the greedy reward", contrast(paths[a], paths[b], "greedy"), ".3f")
        found.append(f"at its KL {comparison(ARMS[a].label, ARMS[b].label, over, '.3f')}; {greedy}")
    return found


def best_of_n_notes(results: dict) -> list[str]:
    """What choosing by the gold judge reaches without training."""
    chosen, curve = (results["paths"][name] for name in (BEST_OF_N, TEMPERED))
    n, reward, kl = (intervals(chosen, name)[-1] for name in ("n", "gold", "kl"))
    return [
        f"the best of {n['mean']:.0f} samples of SFT, by the gold judge itself, has {number(reward, '.3f')} at "
        f"{kl['mean']:.1f} nats; SFT's greedy summary has {number(intervals(curve, 'gold')[-1], '.3f')}"
    ]
