"""The main job over seeds: its tables by hand, and the published ones, which must be what the stored runs make."""

import json
import re

import pytest

from rlhf_lab.authoring import main_job
from rlhf_lab.authoring.readme import main_job_tables
from rlhf_lab.common.assets import PACKAGE
from rlhf_lab.common.intervals import over_runs
from rlhf_lab.common.plots import METHOD_LABELS
from rlhf_lab.objective import PRESETS
from rlhf_lab.workflow.presets import LEARNING_RATES

DOCS = PACKAGE.parent / "docs"


def interval(mean: float, half: float = 0.01) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def policy(name: str, reward: float, kl: float, gain: float) -> dict:
    parts = {"rougeL": 0.2, "imperative": 1.0, "sentence": 1.0, "short": 0.5, "found": 0.5}
    gold = {"reward": interval(reward), "greedy": {"reward": interval(reward + 0.1)}}
    if name != "sft":
        gold |= {"vs_tempered": interval(gain), "delta_vs_sft": interval(gain)}
        gold["greedy"] |= {"delta_vs_sft": interval(gain), "vs_same_length": interval(gain)}
    row = {"policy": name, "iteration": int(name != "sft"), "changed": {}, "gold": gold, "kl": interval(kl)}
    return row | {"length": interval(12.0), "parts": {"greedy": parts}}


def record(shift: float) -> dict:
    tempered = [
        {"temperature": t, "kl": interval(kl), "gold": interval(0.3 + kl / 20)} for t, kl in ((1, 0), (0.5, 4), (0, 8))
    ]
    return {
        "samples": [{"prompt": "a b <tldr>", "reference": "c", "policies": {"sft": {"greedy": "d " * 80}}}],
        "unlearned": {"first 12 words": {"reward": interval(0.2), "parts": policy("sft", 0, 0, 0)["parts"]["greedy"]}},
        "tempered": tempered,
        "best_of_n": [{"n": 2, "kl": 0.19, "gold": interval(0.4)}],
        "policies": [
            policy("sft", 0.3, 0, 0),
            policy("dpo", 0.4 + shift, 2, 0.05 + shift),
            policy("vpo-offline", 0.4, 3, 0.0),
        ],
        "contrasts": [{"a": "dpo", "b": "vpo-offline", "sampled": interval(0.1), "greedy": interval(0.2)}],
    }


@pytest.fixture
def records() -> list[dict]:
    return [record(0.0), record(0.002), record(0.004)]


def test_the_table_has_every_rival_and_intervals_over_runs_and_documents(records):
    sampled, greedy = (table(records).splitlines() for table in (main_job.sampled_table, main_job.greedy_table))
    names = [[line.split("|")[1].strip() for line in lines[2:]] for lines in (sampled, greedy)]
    assert names[0] == ["SFT, temperature 0.5", "SFT, best of 2 by gold", "SFT", "DPO", "VPO offline"]
    assert names[1] == ["first 12 words", "SFT", "DPO", "VPO offline"]
    for lines in (sampled, greedy):
        assert len({line.count("|") for line in lines}) == 1
    gain = over_runs([row["policies"][1]["gold"]["vs_tempered"] for row in records])
    assert gain["mean"] == pytest.approx(0.052) and gain["high"] - gain["low"] > 0.02  # the documents' alone is .02
    assert f"{gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" in sampled[-2]
    assert "| 0.200 | 0.750 |" in greedy[-1]  # content, and style = (1 + 1 + .5 + .5) / 4
    block = main_job.samples(records).split("\n")
    assert (
        block[1:3] == ["document     a b", "author       c"]
        and block[3].startswith("SFT          d d")
        and len(block[3]) < 120
    )
    assert "DPO minus VPO offline" in main_job.contrasts_table(records)


def test_claims_are_made_from_all_seeds(records):
    dpo, vpo = main_job.claims(records).splitlines()
    assert dpo.startswith("- DPO learns what no temperature reaches: +0.0520")
    assert vpo.startswith("- VPO offline does NOT clearly beat a temperature")
    records[0]["policies"][1]["gold"]["greedy"]["delta_vs_sft"] = interval(-0.4)  # one seed that fails
    assert "does NOT clearly gain" in main_job.claims(records).splitlines()[0]


def test_the_picture_has_the_curve_and_every_method(records):
    figure = main_job.draw(records)
    frontier, made_of = figure.axes
    (curve,) = [line for line in frontier.get_lines() if line.get_linestyle() == "--"]
    assert curve.get_xdata().tolist() == [0, 4, 8]
    assert curve.get_ydata() == pytest.approx([0.3, 0.5, 0.7])
    texts = [text.get_text() for text in frontier.texts]
    assert {"DPO", "VPO offline", "SFT, greedy", "T 0.5", "SFT, T 1"} == set(texts)
    assert {"SFT", "DPO", "VPO offline"} <= {line.get_label() for line in made_of.get_lines()}
    assert "DPO 0.402 sampled at 2.0 nats, 0.502 greedy, of content 0.200 and style 0.750" in main_job.alt(records)


def test_the_published_tables_are_those_of_the_stored_runs():
    files = sorted((DOCS / "main_job").glob("seed-*.json"))
    stored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    published = re.search(r"<!-- results:begin -->\n(.*?)\n<!-- results:end -->", page, re.DOTALL).group(1)
    assert len(stored) >= 3
    assert published.strip() == main_job_tables(stored).strip()
    tried = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted((DOCS / "main_job/validation").glob("*.json"))
    ]
    published = re.search(r"<!-- validation:begin -->\n(.*?)\n<!-- validation:end -->", page, re.DOTALL).group(1)
    assert published.strip() == main_job.validation_table(tried).strip()
    assert {record["settings"]["eval_split"] for record in tried} == {"validation"}  # and never the reported ones
    assert {record["settings"]["eval_split"] for record in stored} == {"test"}
    best: dict = {}
    for each in tried:
        for row in each["policies"][1:]:
            setting = each["objectives"][row["policy"]]["alpha"], row["learning_rate"]
            best[row["policy"]] = max(best.get(row["policy"], (-1.0, None)), (main_job.smaller_gain(row), setting))
    chosen = {row["policy"]: row["learning_rate"] for row in stored[0]["policies"][1:]}
    assert chosen == LEARNING_RATES
    for name, rate in chosen.items():
        assert best[name][1] == (PRESETS[name].alpha, rate)
        assert stored[0]["objectives"][name]["alpha"] == PRESETS[name].alpha
    settings = [{**row["settings"], **row["training"]} for row in stored]
    for each in settings:
        each.pop("seed"), each.pop("output_dir")
    assert settings[1:] == settings[:-1]  # seeds of one setting
    assert all(row["corpus"]["shipped"] for row in stored)
    assert all(row["policy"] in METHOD_LABELS for row in stored[0]["policies"])
