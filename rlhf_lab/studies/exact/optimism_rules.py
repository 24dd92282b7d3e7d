"""Conditions that may tell where optimism pays: the best threshold of each, and how often it is right."""

import numpy as np

from rlhf_lab.studies.exact.optimism_cells import QUALITIES

FEATURES = {
    "bet": "DPO's loss per round in the second half minus the loss of the optimist without data",
    "identical": "DPO's share of identical pairs",
    "covered": "the effective number of arms that DPO plays",
    "late": "DPO's loss per round in the second half of the rounds",
    "wasted": "DPO's loss per round in the second half that falls on identical pairs",
    "stall": "DPO's regret of the second half of the rounds over that of the first",
    "beta": "beta",
}


def find_rules(cells: list[dict], conditions: list[dict]) -> dict:
    """For each condition: the threshold that separates cells that pay from those that hurt best, its
    accuracy, and its accuracy on each quality of pi_ref when the threshold comes from the other two."""
    seen = {_place(condition): condition for condition in conditions}
    decided = [cell for cell in cells if cell["sign"]]
    pays = np.array([cell["sign"] < 0 for cell in decided])
    quality = np.array([cell["quality"] for cell in decided])
    rules = {"decided": len(decided), "paying": int(pays.sum()), "majority": _round(max(pays.mean(), 1 - pays.mean()))}
    for feature in FEATURES:
        x = np.array([seen[_place(cell)][feature] for cell in decided])
        threshold, above = best_threshold(x, pays)
        right = ((x > threshold) == above) == pays
        rules[feature] = {"threshold": _round(threshold), "pays": "above" if above else "below"} | {
            "accuracy": _round(right.mean()),
            "held_out_accuracy": _round(_held_out(x, pays, quality)),
        }
        if feature == "bet":  # the one condition that names its own threshold
            rules[feature]["accuracy_at_zero"] = _round(((x > 0) == pays).mean())
    return rules


def _place(row: dict) -> tuple:
    """Where a cell and its condition belong together."""
    return row["pairs"], row["quality"], row["beta"]


def _held_out(x: np.ndarray, pays: np.ndarray, quality: np.ndarray) -> float:
    """Accuracy on each quality of pi_ref of the threshold that the other qualities give, over all cells."""
    right = []
    for name in QUALITIES:
        mine = quality == name
        if mine.any():
            threshold, above = best_threshold(x[~mine], pays[~mine])
            right.append(((x[mine] > threshold) == above) == pays[mine])
    return np.concatenate(right).mean()


def best_threshold(x: np.ndarray, pays: np.ndarray) -> tuple[float, bool]:
    """(threshold, True if paying lies above it) with the fewest errors; thresholds lie midway between values."""
    values = np.unique(x)
    middles = [values[0] - 1, *((values[1:] + values[:-1]) / 2)]
    tried = []
    for threshold in middles:
        for above in (True, False):
            accuracy = (((x > threshold) == above) == pays).mean()
            tried.append((accuracy, float(threshold), above))
    return max(tried, key=lambda candidate: candidate[0])[1:]  # the first of equals


def _round(value: float) -> float:
    return round(float(value), 3)


def rule_notes(rules: dict) -> list[str]:
    """The condition that separates best, always guessing the commoner answer, and the other conditions."""
    best = max(FEATURES, key=lambda feature: rules[feature]["held_out_accuracy"])
    rule, others = rules[best], [feature for feature in FEATURES if feature != best]
    zero = f" (with a threshold of 0, in {rule['accuracy_at_zero']:.0%})" if "accuracy_at_zero" in rule else ""
    return [
        f"the best rule of thumb: optimism pays where {FEATURES[best]} is {rule['pays']} {rule['threshold']}",
        f"that rule is right in {rule['accuracy']:.0%} of {rules['decided']} decided cells{zero}, and in "
        f"{rule['held_out_accuracy']:.0%} when its threshold comes from the other qualities of pi_ref",
        f"always guessing the commoner answer is right in {rules['majority']:.0%}",
        *(_comparison(feature, rules) for feature in others),
    ]


def _comparison(feature: str, rules: dict) -> str:
    """A condition in short: its direction, and both accuracies."""
    rule = rules[feature]
    if rule["accuracy"] <= rules["majority"]:
        return f"a rule by {FEATURES[feature]} is no better than the commoner answer"
    return (
        f"a rule by {FEATURES[feature]} ({rule['pays']} {rule['threshold']}) is right in {rule['accuracy']:.0%}, and "
        f"in {rule['held_out_accuracy']:.0%} on a quality of pi_ref that it has not seen"
    )
