"""The studies on token trees: fast runs give JSON-able results, sentences from intervals, a figure and its alt text."""

import json

import matplotlib.pyplot as plt
import pytest

from rlhf_lab.studies.exact import beam_width, likelihood_decline, token_credit


@pytest.mark.parametrize("study", [beam_width, likelihood_decline, token_credit])
def test_a_study_says_what_it_found(study):
    results = study.run(6, True)
    text = json.dumps(results, allow_nan=False)
    assert len(text) < 100_000
    results = json.loads(text)
    told = study.sentences(results)
    assert len(told) > 2 and all(len(sentence.split()) > 4 for sentence in told)
    assert len(study.alt(results).split()) > 10 and study.QUESTION.endswith("?")
    plt.close(study.draw(results))


def test_the_sentence_follows_the_numbers():
    """The same code says "rises" when the interval is above zero, "falls" below, and that it cannot tell between."""
    results = likelihood_decline.run(4, True)
    for low, high, word in ((0.1, 0.3, "rises by 0.2"), (-0.3, -0.1, "falls by 0.2"), (-0.1, 0.2, "does not move")):
        results["paths"]["writer"]["chosen"][-1] = {"mean": (low + high) / 2, "low": low, "high": high}
        sentence = next(s for s in likelihood_decline.sentences(results) if "wrote the pairs" in s)
        assert f"the chosen log-prob {word}" in sentence


def test_identities_of_the_decline_hold_in_the_study():
    results = likelihood_decline.run(4, True)
    assert max(path["error"] for path in results["paths"].values()) < 1e-12
    assert results["paths"]["sft"]["chosen_error"] < 1e-12 < results["paths"]["independent"]["chosen_error"]
    assert results["paths"]["sft"]["fell"][-1] == 1.0


def test_search_at_the_optimum_is_guided_search_in_every_world():
    results = beam_width.run(4, True)
    for tree in results["trees"].values():
        assert tree["guided_equal"] == tree["searches"]
