"""The X-ray of functions: every planted mutant is named, and right losses pass without an alarm."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lab.commands import cli
from rlhf_lab.objective import CALIBRATIONS, PRESETS, STANCES, Objective, preference_loss
from rlhf_lab.xray import xray
from rlhf_lab.xray.fits import fit_curve
from rlhf_lab.xray.probes import GRID
from rlhf_lab.xray.report import page
from rlhf_lab.xray.shipped import ours
from rlhf_lab.xray.trainers import from_trainer
from tests.xray_losses import MUTANTS, RIGHT, margin, slic, token_loss

DOCS = Path(__file__).parents[1] / "docs" / "xray.md"


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass_without_an_alarm(name):
    loss, claim = RIGHT[name]
    assert xray(loss, claim).names == []


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_named(name):
    """By its own name, and by no other."""
    loss, claim, expected = MUTANTS[name]
    diagnosis = xray(loss, claim)
    assert diagnosis.names == expected
    assert all(each.what.endswith(".") and len(each.example.splitlines()) == 2 for each in diagnosis.deviations)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised(name):
    diagnosis = xray(partial(preference_loss, PRESETS[name]))
    assert diagnosis.names == [] and PRESETS[diagnosis.nearest] == PRESETS[name]


@settings(max_examples=25)
@given(
    beta=st.floats(0.003, 5.0),
    alpha=st.sampled_from([0.0, 0.05, 0.7]),
    stance=st.sampled_from(STANCES),
    calibration=st.sampled_from(CALIBRATIONS),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_any_objective_is_read_back(beta, alpha, stance, calibration, smoothing):
    """All settings at once: beta, the bonus with its sign and carrier, and label smoothing beside it.

    On the pair's own responses, smoothing and bonus are one thing: there only one of both is set.
    """
    if calibration in ("chosen", "rejected") and alpha:
        smoothing = 0.0
    o = Objective(beta, alpha, stance, calibration, label_smoothing=smoothing)
    diagnosis = xray(partial(preference_loss, o))
    facts = diagnosis.facts
    assert diagnosis.names == []
    assert facts.beta == pytest.approx(beta, rel=1e-6) and facts.scale == pytest.approx(1.0, rel=1e-6)
    assert facts.smoothing == pytest.approx(smoothing, abs=1e-6)
    assert facts.bonus == pytest.approx(o.sign * alpha * beta, rel=1e-6, abs=1e-12)
    carriers = {"chosen": "chosen", "rejected": "rejected"}
    assert facts.carrier == (carriers.get(calibration, "third") if alpha else None)


@settings(max_examples=25)
@given(beta=st.floats(0.005, 5.0), size=st.floats(0.01, 10.0), low=st.floats(-1.0, 1.0), offset=st.floats(-2.0, 2.0))
def test_curves_are_fitted_to_rounding(beta, size, low, offset):
    curve = fit_curve(GRID, low + size * torch.sigmoid(offset - beta * GRID))
    assert curve.fit == "logistic" and curve.residual < 1e-6
    assert (curve.beta, curve.size) == pytest.approx((beta, size), rel=1e-3)
    assert (curve.low, curve.offset) == pytest.approx((low, offset), abs=1e-3 * max(size, 1.0))


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_the_step_of_a_hinge_is_found(beta):
    assert xray(partial(slic, beta=beta)).facts.beta == pytest.approx(beta, rel=1e-3)


def test_an_offset_is_found():
    """SimPO's target margin, on top of DPO's."""

    def simpo_like(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
        m = 0.5 * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
        return F.softplus(1.2 - m)

    diagnosis = xray(simpo_like)
    assert diagnosis.names == ["offset"] and diagnosis.facts.curve.offset == pytest.approx(1.2, rel=1e-6)


def test_arguments_that_are_not_recognised_are_named():
    def strange(chosen_logps, rejected_logps, temperature):
        return temperature * (rejected_logps - chosen_logps)

    with pytest.raises(ValueError, match="does not know what to give to temperature; it knows arguments such as"):
        xray(strange)
    with pytest.raises(ValueError, match="the loss has no gradient"):
        xray(lambda chosen_logps, rejected_logps: (rejected_logps - chosen_logps).detach())
    with pytest.raises(ValueError, match=r"for 1 pairs a loss of shape \(\) or \(1,\) is expected, got \(1, 1\)"):
        xray(lambda chosen_logps, rejected_logps: (rejected_logps - chosen_logps)[:, None])


def test_a_loss_that_breaks_in_batches_is_told():
    def single(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps):
        return F.softplus(-0.1 * margin(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)).reshape(())

    diagnosis = xray(single)
    assert diagnosis.names == ["pairs of a batch mix"] and diagnosis.facts.reduction.startswith("fails: ")


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_pages_have_the_formula_the_nearest_preset_and_each_deviation(format):
    loss, claim, _ = MUTANTS["bonus on the rejected response"]
    shown = page(xray(loss, claim), format)
    assert "loss = [ -log sigma(0.1 (h+ - h-)) ] - 0.02 * h-" in shown and "vpo-offline, with beta 0.1" in shown
    assert "The bonus is on the rejected response, not on the chosen one." in shown
    assert re.search("not determined: .*whether the reference stays fixed", shown, re.IGNORECASE)
    with pytest.raises(ValueError, match="format='pdf': must be one of text, markdown, html"):
        page(xray(token_loss), "pdf")


def test_the_command_takes_functions_classes_and_settings(capsys, tmp_path):
    assert cli.main(["xray", "tests.xray_losses:TuneDPO", "--set", "beta=0.3,label_smoothing=0.05"]) == 0
    assert "loss = [ -0.95 log sigma(m) - 0.05 log sigma(-m) ], m = 0.3 (h+ - h-)" in capsys.readouterr().out
    target = ["xray", "rlhf_lab.objective:preference_loss", "--set", "objective=rpo"]
    assert cli.main([*target, "--format", "html", "--output", str(tmp_path / "page.html")]) == 0
    assert "Nearest preset: rpo, with beta 0.01" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli.main(["xray", "tests.xray_losses:softplus_dpo", "--claim", "wpo"]) == 0
    assert "NO WEIGHT: All pairs weigh the same." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "TARGET 'nowhere': must be ours, trl, or module:function"),
        (["nowhere:loss"], "No module named 'nowhere'; name an importable module"),
        (["tests.xray_losses:nothing"], "has no attribute 'nothing'"),
        (["tests.xray_losses:slic", "--set", "betta=1"], "unexpected keyword argument 'betta'"),
        (["tests.xray_losses:slic", "--set", "beta"], "'beta' is no NAME=VALUE"),
        (["tests.xray_losses:slic", "--set", "beta=1,beta=2"], "'beta' is given twice"),
        (["ours", "--set", "betta=1"], "an objective has no betta"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message, capsys):
    assert cli.main(["xray", *arguments]) == 2
    assert message in capsys.readouterr().err


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_of_ours_in_the_docs_is_what_the_code_says():
    shown = page(xray(ours()))
    assert shown + "\n" in code_blocks("text")
    assert "No deviation from what it is meant to be." in shown


def test_adapters_in_the_docs_work():
    """The loss on tokens has the fault that the page names; the trainer has none."""
    loss, trainer = code_blocks("python")
    names: dict[str, object] = {}
    exec(loss, names)
    exec(trainer, names)
    assert xray(names["my_loss"]).names == ["mean for sum"]
    assert xray(from_trainer("mine", names["my_trainer"])).names == []
