"""docs/notation.md: its code names exist, and what it says of objectives, presets and logs is what the code does."""

import dataclasses
import importlib
import inspect
import math
import re
from pathlib import Path

import pytest
import torch

from rlhf_lab.common.plots import METHOD_LABELS
from rlhf_lab.engine.logps import ResponseLogps
from rlhf_lab.objective import CALIBRATIONS, PRESETS, STANCES, WEIGHTINGS, Objective
from rlhf_lab.training.preference import preference_losses
from rlhf_lab.workflow.pairs import STATUSES
from rlhf_lab.worlds.exact import optimal_logps
from rlhf_lab.worlds.online import METHODS
from rlhf_lab.worlds.trees.values import soft_values

PAGE = (Path(__file__).parents[1] / "docs" / "notation.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")
NAME = re.compile(r"([a-z_]+(?:\.\w+)+)(?:\((\w+)\))?")


def tables() -> dict[str, list[dict[str, str]]]:
    """{header line: rows as {column: cell}} of every table of the page."""
    found: dict[str, list[dict[str, str]]] = {}
    header: list[str] = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif not set(line) <= set("|-"):
            assert len(cells) == len(header), line
            found.setdefault(" ".join(header), []).append(dict(zip(header, cells, strict=True)))
    return found


def table(first: str) -> list[dict[str, str]]:
    """All rows of the tables whose header begins so."""
    rows = []
    for header, body in tables().items():
        if header.startswith(first):
            rows += body
    assert rows, f"no table begins with {first!r}"
    return rows


def code_names() -> list[str]:
    return sorted({name for name in CODE.findall(PAGE) if NAME.fullmatch(name)})


def found(name: str) -> object:
    """What a name of the page stands for: a module's member, a class's field, or a function's argument."""
    path, argument = NAME.fullmatch(name).groups()
    module, *attributes = path.removeprefix("rlhf_lab.").split(".")
    here = importlib.import_module(f"rlhf_lab.{module}")
    for attribute in attributes:
        if inspect.ismodule(here) and not hasattr(here, attribute):
            here = importlib.import_module(f"{here.__name__}.{attribute}")
        elif dataclasses.is_dataclass(here) and attribute in {field.name for field in dataclasses.fields(here)}:
            here = attribute  # a field without a default is no attribute of its class
        else:
            here = getattr(here, attribute)
    if argument is not None:
        assert argument in inspect.signature(here).parameters, f"{path} has no argument {argument}"
    return here


@pytest.mark.parametrize("name", code_names())
def test_every_code_name_exists(name):
    assert found(name) is not None


@pytest.mark.parametrize(
    "name", ["objective.Objective.no_such", "objective.preference_loss(no_such)", "worlds.nothing"]
)
def test_a_name_that_does_not_exist_is_noticed(name):
    with pytest.raises((AttributeError, AssertionError, ModuleNotFoundError)):
        found(name)


def test_every_code_cell_holds_names():
    """A cell under `in code` is a list of names and nothing else: prose there would be read as a name, and is not."""
    cells = 0
    for rows in tables().values():
        for row in rows:
            if "in code" in row:
                names = CODE.findall(row["in code"])
                assert names and CODE.sub("", row["in code"]).strip(", ") == "", row
                assert all(NAME.fullmatch(name) for name in names), row
                cells += 1
    assert cells > 80


def test_every_term_is_explained_once():
    terms = [row["term"] for row in table("term")]
    assert len(terms) == len(set(terms)) and all(row["what it is"] for row in table("term"))


def test_every_field_of_the_objective_has_its_row():
    rows = {name for row in table("term") for name in CODE.findall(row["in code"])}
    assert {f"objective.Objective.{field.name}" for field in dataclasses.fields(Objective)} <= rows
    assert "objective.Objective.sign" in rows


def test_every_choice_is_named():
    assert [row["calibration"] for row in table("calibration")] == list(CALIBRATIONS)
    words = " ".join(row["what it is"] for row in table("term"))
    assert all(re.search(rf"\b{choice}\b", words) for choice in (*STANCES, *WEIGHTINGS))
    assert set(STATUSES) <= {row["term"] for row in table("term")}


def test_every_method_has_its_row():
    labels = {row["method"]: row["label"] for row in table("method")}
    assert labels.items() >= METHOD_LABELS.items()
    assert set(METHODS) <= set(labels)


def test_presets_are_as_the_page_says():
    """A bonus of strength 0 has neither stance nor calibration; alpha beta is what multiplies the summed log-ratio."""
    rows = {row["method"]: row for row in table("method label beta")}
    assert list(rows) == list(PRESETS)
    for name, o in PRESETS.items():
        row, idle = rows[name], o.alpha == 0
        stated = [float(row[column]) for column in ("beta", "alpha", "alpha beta", "label smoothing")]
        assert stated == pytest.approx([o.beta, o.alpha, o.alpha * o.beta, o.label_smoothing], rel=1e-12), name
        words = ["-", "-"] if idle else [o.stance, o.calibration]
        assert [row["stance"], row["calibration"], row["weighting"]] == [*words, o.weighting or "-"], name
        assert o.max_weight == 1.0


def test_every_name_in_a_log_is_explained():
    """What `preference_losses` logs with everything switched on, and the mixture's, stand in the table; no other."""
    shape = (1, 3, 2)  # one pair with its calibration response, two tokens each
    policy = ResponseLogps(torch.full(shape, -1.0), torch.ones(shape, dtype=torch.bool), torch.zeros(shape))
    everything = Objective(alpha=0.1, calibration="given", weighting="sampled")
    logged = set(preference_losses(everything, policy, torch.full((1, 3), -2.0)).metrics)
    named = {name for row in table("name in the log") for name in row["name in the log"].split(", ")}
    assert named == logged | {"router/aux_loss"}


def test_beta_is_the_temperature_of_the_tilt():
    """Rewards log 3 and 0, pi_ref even: odds 3^(1/beta), so 9:1 at beta .5, 3:1 at 1, sqrt(3):1 at 2."""
    rewards = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    even = torch.full_like(rewards, math.log(0.5))
    for beta, odds in ((0.5, 9.0), (1.0, 3.0), (2.0, math.sqrt(3.0))):
        assert float(optimal_logps(rewards, even, beta).exp()[0, 0]) == pytest.approx(odds / (1 + odds))


def test_the_advantage_is_not_q_minus_v():
    """One token, pi_ref 1:3, no reward: V* = 0, Q* = beta log pi_ref, and A* = 0, for pi* is pi_ref."""
    rewards, ref = torch.zeros(1, 1, 2, dtype=torch.float64), torch.tensor([[[0.25, 0.75]]], dtype=torch.float64).log()
    values = soft_values((rewards,), (ref,), 0.5)
    assert float(values.v[0]) == pytest.approx(0.0, abs=1e-15)
    torch.testing.assert_close(values.q[0], 0.5 * ref)
    torch.testing.assert_close(values.advantages[0], rewards, atol=1e-15, rtol=0)


def test_nothing_refers_to_a_document_that_is_not_here():
    """A paper with its number, or this page, and no "theory" that a reader cannot open."""
    root, words = Path(__file__).parents[1], ("theory" + "'s", "common" + " ground")
    files = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("notebooks/source/*.py")]
    files += [*root.glob("rlhf_lab/**/*.py"), *root.glob("tests/**/*.py")]
    naming = {str(path.relative_to(root)) for path in files if any(w in path.read_text("utf-8") for w in words)}
    assert len(files) > 200 and naming == set()
