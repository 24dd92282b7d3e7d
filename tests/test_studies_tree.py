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
    notes = study.notes(results)
    assert len(study.answer(results).split()) < 25 and len(study.table(results)) > 3
    assert all(len(note.split()) > 4 for note in (*notes.equal, *notes.found, *notes.limits))
    assert len(study.alt(results).split()) > 10 and study.QUESTION.endswith("?")
    plt.close(study.draw(results))


def test_the_answer_follows_the_numbers():
    """The same code says "rises" when the interval is above zero, "falls" below, and that it cannot tell between."""
    results = likelihood_decline.run(4, True)
    for low, high, word in (
        (0.1, 0.3, "rises by 0.20 nats."),
        (-0.3, -0.1, "falls by 0.20"),
        (-0.1, 0.2, "does not move"),
    ):
        results["paths"]["sft"]["chosen"][-1] = {"mean": (low + high) / 2, "low": low, "high": high}
        assert word in likelihood_decline.answer(results)


def test_dpo_beats_position_only_where_it_stays_above_it():
    """Won at 30 pairs, undecided at 300, won at 3,000: from 3,000 pairs on."""
    results = token_credit.run(4, True)
    won, open_ = {"mean": 0.2, "low": 0.1, "high": 0.3}, {"mean": 0.0, "low": -0.1, "high": 0.1}
    results["over"]["position"] = [won, open_, won]
    assert "beat the best guess by position from 3000 pairs on" in token_credit.answer(results)
    results["over"]["position"] = [won, won, open_]
    assert "never beat the best guess by position detectably" in token_credit.answer(results)


def test_identities_of_the_decline_hold_in_the_study():
    results = likelihood_decline.run(4, True)
    assert max(path["error"] for path in results["paths"].values()) < 1e-12
    assert results["paths"]["sft"]["chosen_error"] < 1e-12 < results["paths"]["independent"]["chosen_error"]
    assert results["paths"]["sft"]["fell"][-1] == 1.0


def test_search_at_the_optimum_is_guided_search_in_every_world():
    results = beam_width.run(4, True)
    for tree in results["trees"].values():
        assert tree["guided_equal"] == tree["searches"]
