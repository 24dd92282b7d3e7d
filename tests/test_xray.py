"""The X-ray of functions: every planted mutant is named, and right losses pass without an alarm."""

import pytest

from rlhf_lab.xray import xray
from tests.xray_losses import MUTANTS, RIGHT


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass_without_an_alarm(name):
    loss, claim = RIGHT[name]
    assert xray(loss, claim).names == []


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_named(name):
    """By its own name, and by no other."""
    loss, claim, expected = MUTANTS[name]
    assert xray(loss, claim).names == expected
