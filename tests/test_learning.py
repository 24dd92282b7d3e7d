"""Default learning rates by task and size, and a closing sentence that says when nothing was learnt."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf_lab.commands import cli
from rlhf_lab.common.arguments import field_help
from rlhf_lab.data.examples import Example
from rlhf_lab.judges.reward_model import train_reward
from rlhf_lab.objective import preset
from rlhf_lab.training.defaults import DEFAULTS, default_learning_rate, defaults_taken, with_defaults
from rlhf_lab.training.learning import LOSS, MARGIN, WINDOW, Learning, Watched, group_of, learning
from rlhf_lab.training.loop import train
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.run_folder import read_run
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.training.sft import sft_loss, train_sft
from tests.training_helpers import quiet, random_examples, tiny_llama, tiny_tokenizer

SFT, PAIRS = random_examples(24, responses=1), random_examples(24)


def watched(values, quantity=MARGIN, longest=None, prompts=None) -> Watched:
    """As the loop fills it: batches of up to 7, read now and then; prompts: one number each, all different if None."""
    numbers = range(len(values)) if prompts is None else prompts
    examples = [Example((1, number), ((i,),)) for i, number in enumerate(numbers)]
    found = Watched(longest)
    for begin in range(0, len(values), 7):
        part = torch.tensor(values[begin : begin + 7])
        if quantity == MARGIN:
            losses = (torch.zeros_like(part), torch.ones_like(part), {"rewards/margins": part})
        else:
            losses = (3 * part, torch.full_like(part, 3.0), {})  # summed over three tokens
        found.add(*losses, examples=examples[begin : begin + 7])
        if begin % 2:
            found.read()
    return found


def test_the_rate_falls_as_one_over_the_width():
    """Four times the parameters is twice the width: half the rate."""
    for task, default in DEFAULTS.items():
        rates = [default_learning_rate(task, round(6e6 * factor)) for factor in (1, 4, 100)]
        assert rates == pytest.approx([default.learning_rate / part for part in (1, 2, 10)], rel=0.03)


def test_the_help_states_the_table():
    said = field_help(TrainingSettings)
    rates = re.search(r"RATE (\S+) for SFT, (\S+) for reward models, (\S+) for preference", said["learning_rate"])
    assert list(map(float, rates.groups())) == [default.learning_rate for default in DEFAULTS.values()]
    epochs = re.search(r"none: (\d) for SFT, (\d) for reward models and preference", said["num_train_epochs"])
    assert list(map(float, epochs.groups())) == [DEFAULTS["sft"].epochs, DEFAULTS["reward"].epochs]
    assert DEFAULTS["reward"].epochs == DEFAULTS["preference"].epochs and list(DEFAULTS)[1] == "reward"


def test_defaults_fill_what_is_not_given_and_nothing_else():
    model = nn.Linear(1000, 6000, bias=False)  # 6M parameters
    settings = with_defaults(TrainingSettings("x"), "sft", model)
    assert (settings.learning_rate, settings.num_train_epochs) == DEFAULTS["sft"]
    given = TrainingSettings("x", learning_rate=0.5, num_train_epochs=0.25)
    assert with_defaults(given, "sft", model) == given and defaults_taken(given, "sft", model) is None
    assert with_defaults(TrainingSettings("x", num_train_epochs=3.0), "reward", model).num_train_epochs == 3.0


@pytest.mark.parametrize("task", DEFAULTS)
def test_a_run_records_the_defaults_that_it_took(tmp_path, task):
    settings = TrainingSettings(tmp_path, device="cpu", disable_tqdm=True, save_steps=0)
    model = tiny_llama()
    expected = with_defaults(settings, task, model)
    if task == "preference":
        train_preference(model, None, PAIRS, preset("dpo"), settings)
    else:
        {"sft": train_sft, "reward": train_reward}[task](model, None, SFT if task == "sft" else PAIRS, settings)
    identity = read_run(tmp_path).identity
    assert identity["settings.num_train_epochs"] == repr(expected.num_train_epochs)
    assert float(identity["settings.learning_rate"]) == pytest.approx(expected.learning_rate, rel=0.02)  # no head yet


def test_the_bare_loop_has_no_defaults(tmp_path):
    with pytest.raises(ValueError, match="give learning_rate and num_train_epochs"):
        train(tiny_llama(), SFT, sft_loss, TrainingSettings(tmp_path))


def test_margins_by_hand():
    """Mean 2, standard deviation 1 of three values: 2 +- 4.303 / sqrt(3)."""
    found = learning(watched([9.0] * 50), None, watched([1.0, 2.0, 3.0]))
    assert found.quantity == MARGIN and found.examples == "3 held-out pairs"
    assert found.interval["mean"] == pytest.approx(2.0)
    assert found.interval["low"] == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert found.sign == 0 and found.sentence().startswith("NO SIGN OF LEARNING")


def test_without_held_out_pairs_the_last_ones_trained_on_decide():
    values = [100.0] * 50 + [1.0, 1.1] * (WINDOW // 2)
    found = learning(watched(values, longest=WINDOW), None, None)
    assert found.examples == f"the last {WINDOW} pairs trained on"
    assert found.interval["mean"] == pytest.approx(1.05) and found.sign == 1
    assert learning(watched([-1.0, -1.1, -1.2]), None, None).sentence().startswith("THE WRONG WAY ROUND")


def test_the_fall_of_the_loss_by_hand():
    """30 examples, thirds of 10: from 4 to 3, by exactly 1; and held-out examples are compared one by one."""
    values = [4.0, 4.2] * 5 + [9.0] * 10 + [3.0, 3.2] * 5
    found = learning(watched(values, LOSS, WINDOW), None, None)
    assert found.quantity == LOSS and found.interval["mean"] == pytest.approx(1.0)
    assert found.sign == 1 and "the first to the last 10 examples" in found.sentence()
    before, after = watched([1.0, 5.0, 9.0], LOSS), watched([0.9, 4.9, 8.9], LOSS)
    paired = learning(watched([1.0], LOSS), before, after)
    expected = {"mean": 0.1, "low": 0.1, "high": 0.1, "few": 3}
    assert paired.interval == pytest.approx(expected, abs=1e-5) and paired.sign == 1


def test_copies_of_a_pair_are_one_pair():
    """Three prompts a hundred times each say no more than three: 2 +- 4.303 / sqrt(3), and that they are few."""
    found = learning(watched([1.0, 2.0, 3.0] * 100), None, watched([1.0, 2.0, 3.0] * 100, prompts=[4, 5, 6] * 100))
    assert found.interval["mean"] == pytest.approx(2.0)
    assert found.interval["low"] == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert found.groups == 3 and found.sign == 0 and "few groups: 3" in found.sentence()
    last = learning(watched([0.5, 1.5] * 50, prompts=[4, 5] * 50), None, None)  # trained on again in every epoch
    assert last.sign == 0 and last.interval["low"] == pytest.approx(1 - 12.706 * 0.5, abs=1e-2)


def test_one_prompt_gives_no_interval():
    found = learning(watched([1.0, 1.1, 0.9], prompts=[4, 4, 4]), None, None)
    assert found.sign == 0 and found.groups == 1
    assert found.sentence().startswith("WHETHER IT LEARNT CANNOT BE TOLD: the mean reward margin of the last 3 pairs")
    assert "is 1, but all of them have one prompt" in found.sentence() and "inf" not in found.sentence()


def test_texts_that_begin_with_one_token_are_no_copies():
    """Pretraining's rows have BOS, or their own first token, for a prompt."""
    rows = [Example((1,), ((i, i + 1),)) for i in range(9)]
    assert len({group_of(row) for row in rows}) == 9 and group_of(rows[0]) == group_of(replace(rows[0], row=7))


def test_two_ends_of_a_training_by_hand():
    """Means 4 and 3 of three values each, squares around them 2 and 8: se^2 = 4 (2 + 8) / (6 x 5), 5 degrees."""
    first, last = [3.0, 4.0, 5.0], [1.0, 3.0, 5.0]
    found = learning(watched([*first, 9.0, 9.0, 9.0, *last], LOSS, WINDOW), None, None)
    error = (4 * (2 + 8) / (6 * 5)) ** 0.5
    assert found.interval["mean"] == pytest.approx(1.0)
    assert found.interval["high"] == pytest.approx(1.0 + 2.5706 * error, abs=1e-3)


def test_a_sure_step_of_next_to_nothing_is_nothing():
    """15 pairs on too low a rate: every margin is .0009, for certain."""
    found = learning(watched([0.0009, 0.00091] * 8), None, None)
    assert found.interval["low"] > 0 and found.sign == 0 and "next to nothing" in found.sentence()


def test_what_cannot_be_told_is_not_said():
    assert learning(watched([1.0]), None, None) is None
    resumed = {"before": None, "after": watched([2.0, 3.0], LOSS), "resumed": True}
    assert learning(watched([3.0] * 9, LOSS), **resumed) is None  # where the loss began is not known
    assert learning(watched([3.0, 4.0]), None, None, resumed=True).quantity == MARGIN  # but where the margin ended is
    assert learning(watched([]), None, None, resumed=True) is None  # a finished run: no step, nothing to evaluate
    assert learning(watched([1.0, float("nan")]), None, None) is None


@pytest.mark.parametrize("task", ["sft", "preference", "reward"])
def test_a_run_that_learns_and_one_that_cannot(tmp_path, task):
    """Token 5 is always right; in the other run the labels are coins, and the rate is next to nothing."""

    def run(name: str, rate: float, pairs) -> Learning:
        examples = pairs if task != "sft" else [Example(p.prompt, p.responses[:1], p.row) for p in pairs]
        settings = quiet(tmp_path / name, learning_rate=rate, num_train_epochs=4, save_steps=0)
        if task == "preference":
            return train_preference(tiny_llama(), None, examples, preset("dpo"), settings).learning
        return {"sft": train_sft, "reward": train_reward}[task](tiny_llama(), None, examples, settings).learning

    right = [Example(p.prompt, ((5, 5, 1), (6, 7, 1)), p.row) for p in random_examples(48)]
    assert run("right", 1e-2, right).sign == 1
    swapped = [Example(p.prompt, p.responses[:: 1 if i % 2 else -1], p.row) for i, p in enumerate(right)]
    assert run("coins", 1e-9, swapped if task != "sft" else right).sign == 0


def test_the_commands_say_defaults_and_verdict(tmp_path, capsys):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"w{i % 7 + 2} w3", "chosen": " w5 w6", "rejected": " w7 w8"} for i in range(15)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model_name_or_path": tmp_path / "model", "train_file": tmp_path / "pairs.jsonl"}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]

    def run(name: str, *more: str) -> str:
        assert cli.main(["train", "preference", *flags, "--output_dir", str(tmp_path / name), *more]) == 0
        return capsys.readouterr().out

    said = run(
        "idle", "--learning_rate", "1e-9", "--num_train_epochs", "1", "--eval_file", str(tmp_path / "pairs.jsonl")
    )
    assert "NO SIGN OF LEARNING: the mean reward margin of 15 held-out pairs" in said and "the default" not in said
    parameters = sum(p.numel() for p in tiny_llama().parameters())
    rate = default_learning_rate("preference", parameters)
    assert f"--learning_rate {rate:g} --num_train_epochs 1: the default for preference training" in run("default")
