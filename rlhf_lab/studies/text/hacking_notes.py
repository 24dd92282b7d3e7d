"""The notes of the study `reward-hacking`: its judges, its parts, best of n, and a judge that likes length."""

from rlhf_lab.common.intervals import change, comparison, mean_interval, number
from rlhf_lab.studies.text.hacking_proxies import against_training, reached
from rlhf_lab.studies.text.measuring import BEST_OF_N
from rlhf_lab.studies.text.paths import contrast, gain

# No arm has the bias with a penalty of its size: it would be the gold judge's, pair by pair (`same_pairs` counts).
ARMS = {
    "gold": "the gold judge",
    "learned": "the learned judge",
    "style": "style alone",
    "biased": "gold plus a bias for length",
}


def style_notes(results: dict) -> list[str]:
    """What becomes of content and style, sampled, in each arm."""
    found = []
    for arm in ("style", "learned", "gold"):
        path = results["paths"][arm]
        moved = [change(part, gain(path, part), ".3f") for part in ("content", "style")]
        found.append(f"trained on {ARMS[arm]}, {' and '.join(moved)}, both sampled")
    return found


def judge_notes(results: dict) -> list[str]:
    """How good the learned judge is, gold along training on it, and against training on gold itself."""
    seeds, paths = results["seeds"], results["paths"]
    accuracy = number(mean_interval(seeds["accuracy"]), ".1%")
    wants = [number(mean_interval(seeds[name]), ".1%") for name in ("prefers_longer", "gold_prefers_longer")]
    along = ", ".join(f"{mean_interval(values)['mean']:.3f}" for values in paths["learned"]["gold"])
    difference = contrast(paths["learned"], paths["gold"], "gold")
    return [
        f"the learned judge is right in {accuracy} of held-out comparisons",
        f"it prefers the longer of two summaries in {wants[0]} of comparisons, and gold in {wants[1]}",
        f"trained on it, gold goes along the iterations {along}",
        comparison("gold after the learned judge", "after gold itself", difference, ".3f"),
    ]


def best_of_n_notes(results: dict) -> list[str]:
    """Best-of-n along n, and against training at the same KL and at the same score of the learned judge."""
    chosen, learned = (results["paths"][name] for name in (BEST_OF_N, "learned"))
    ns = [round(values[0]) for values in chosen["n"]]
    found = [
        f"best of {ns[-1]}, by a perfect judge, would gain {number(gain(chosen, 'best'), '.3f')} of gold",
    ]
    if ns[-1] > 8:
        after = gain(chosen, "gold", since=ns.index(8))
        found.append(f"from best of 8 to best of {ns[-1]} {change('gold', after, '.3f')}")
    for axis, where in (("kl", "KL"), ("proxy_sd", "score")):
        if point := reached(learned, chosen, axis):
            gold = against_training(learned, chosen, axis, point, "gold")
            words = comparison("gold of best-of-n", "that of training", gold, ".3f")
            found.append(f"at the {where} of best of {ns[point]}, {words}")
    return found


def length_notes(results: dict) -> list[str]:
    """What a judge that likes length does to length and gold, and what a penalty changes."""
    paths, seeds = results["paths"], results["seeds"]
    none, control = (paths[arm] for arm in ("biased", "gold"))
    bias, tokens = (mean_interval(values)["mean"] for values in (seeds["bias"], none["length"][-1]))
    found = [
        f"the biased judge adds {bias:.4f} a character, so that length moves it as much as gold does",
        f"trained on it {change('the length', gain(none, 'characters'), '.0f')} characters, to {tokens:.1f} tokens of "
        f"at most {results['settings']['max_new_tokens']}",
    ]
    difference = comparison("gold", "without a penalty", contrast(control, none, "gold"), ".3f")
    found.append(f"with the bias as a penalty, {difference}")
    same = min(seeds["same_pairs"])
    found.append(
        f"a penalty of the bias is the gold judge's own run: it makes {same:.0%} of its comparisons as gold does"
    )
    return found
