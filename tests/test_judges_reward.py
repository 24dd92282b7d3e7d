"""Bradley-Terry reward models: one score per response whatever surrounds it, loss, training, plain transformers."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lab.commands.cli import main
from rlhf_lab.commands.train_reward import score_margins
from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.encoding import encode_prompt, encode_response
from rlhf_lab.data.examples import Example
from rlhf_lab.data.records import PreferenceRecord
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.hidden import packed_last_hidden, plain_last_hidden
from rlhf_lab.judges.reward_model import (
    reward_judge,
    reward_loss,
    reward_loss_fn,
    reward_model,
    reward_scores,
    scalar_head,
    train_reward,
)
from rlhf_lab.judges.rows import values_of_rows
from tests.test_logps import FAMILIES, SMALL, tiny
from tests.training_helpers import EOS, VOCABULARY, distance, quiet, random_examples, tiny_llama, tiny_tokenizer


def alone(model, example: Example, k: int) -> torch.Tensor:
    """Oracle: the head on the last hidden state of one unpadded row, run by itself."""
    hidden = model.base_model(torch.tensor([example.prompt + example.responses[k]]), use_cache=False).last_hidden_state
    return model.score(hidden)[0, -1, 0]


def gradients(model, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (weights * scores).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Cohere has no sequence-classification form in transformers.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("Granite", "Cohere")])
def test_scores_and_gradients_equal_the_plain_path_and_single_rows(family):
    model = reward_model(tiny(family)).eval()
    head = scalar_head(model)
    for responses in (1, 2, 3):
        batch = collate([Example(e.prompt, e.responses) for e in random_examples(4, responses)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = reward_scores(model, batch)
        plain = head(plain_last_hidden(model, batch))[..., 0]
        assert scores.shape == (4, responses) and scores.dtype == torch.float32
        torch.testing.assert_close(scores, plain, atol=1e-5, rtol=1e-5)
        for b, example in enumerate(batch.examples):
            for k in range(responses):
                torch.testing.assert_close(scores[b, k], alone(model, example, k), atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(model, scores), gradients(model, head(plain_last_hidden(model, batch))[..., 0])
    assert ours.keys() == theirs.keys()
    scale = torch.stack([g.norm() for g in theirs.values()]).norm()
    for name, expected in theirs.items():
        assert (ours[name] - expected).norm() <= 1e-4 * scale, name


def test_scores_do_not_depend_on_order_batch_size_or_the_other_responses():
    model, examples = reward_model(tiny_llama()).eval(), random_examples(6, 3)
    together = reward_scores(model, collate(examples))
    assert together.std() > 0.1  # scores that hardly differ would agree whatever went wrong
    backwards = reward_scores(model, collate(examples[::-1])).flip(0)
    singly = torch.cat([reward_scores(model, collate([example])) for example in examples])
    one_response = reward_scores(model, collate([Example(e.prompt, e.responses[2:]) for e in examples]))[:, 0]
    for other in (backwards, singly):
        torch.testing.assert_close(other, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one_response, together[:, 2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ending", [(), (EOS,), (EOS, EOS), (0,), (5, 0)])
def test_the_last_token_is_found_by_the_mask_whatever_it_is(ending):
    """EOS, none (a cut response), two, or the padding token itself: the last one counts, beside longer neighbours."""
    model = reward_model(tiny_llama()).eval()
    examples = [Example((7, 8, 9), ((4, 5, *ending), (6,) * 12)), *random_examples(2)]
    torch.testing.assert_close(reward_scores(model, collate(examples))[0, 0], alone(model, examples[0], 0))


def test_what_cannot_run_packed_falls_back_with_one_warning():
    model = tiny("Gemma2", attn_logit_softcapping=50.0, attn_implementation="eager")
    model = reward_model(model).eval()
    model.set_attn_implementation("eager")
    batch = collate(random_examples(3))
    with pytest.warns(
        UserWarning, match="cannot run packed rows.*softcap.*its hidden states take the plain padded path"
    ):
        scores = reward_scores(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(reward_scores(model, batch), scores)
    torch.testing.assert_close(scores[2, 1], alone(model, batch.examples[2], 1), atol=1e-5, rtol=1e-5)


def test_a_leak_between_responses_would_be_noticed(monkeypatch):
    """If packed rows gave other hidden states, the first batch would say so and the plain values would come."""

    def leaking(model, batch):
        hidden = packed_last_hidden(model, batch)
        return hidden + 0.1 * hidden.roll(1, dims=1)

    monkeypatch.setattr("rlhf_lab.engine.hidden.packed_last_hidden", leaking)
    model, batch = reward_model(tiny_llama()).eval(), collate(random_examples(3))
    with pytest.warns(UserWarning, match="results differ by"):
        scores = reward_scores(model, batch)
    torch.testing.assert_close(scores[0, 1], alone(model, batch.examples[0], 1), atol=1e-5, rtol=1e-5)


def test_rewards_are_float32_under_autocast():
    model, batch = reward_model(tiny_llama()).eval(), collate(random_examples(8))
    exact = reward_scores(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = reward_scores(model, batch)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())
    assert 0 < float((rough - exact).detach().abs().mean()) < 0.05 * float(exact.detach().std())


# The loss


@given(
    chosen=st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    shift=st.floats(-50, 50),
    margin=st.floats(0, 3),
    smoothing=st.floats(0, 0.49),
)
@settings(deadline=None, max_examples=50)
def test_loss_is_the_formula_and_knows_differences_only(chosen, shift, margin, smoothing):
    chosen = torch.tensor(chosen, dtype=torch.float64)
    rejected = chosen.flip(0) * 0.7 - 1
    loss = reward_loss(chosen, rejected, margin, label_smoothing=smoothing)
    d = chosen - rejected - margin
    expected = (1 - smoothing) * torch.log1p(torch.exp(-d)) + smoothing * torch.log1p(torch.exp(d))
    torch.testing.assert_close(loss, expected)
    shifted = reward_loss(chosen + shift, rejected + shift, margin, label_smoothing=smoothing)
    torch.testing.assert_close(shifted, loss, atol=1e-9, rtol=1e-9)


def test_loss_gradient_and_where_smoothing_puts_the_minimum():
    """d loss / d r+ = sigma(d) - 1 + eps, so the minimum lies at d = log((1 - eps) / eps); a margin moves it up."""
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    chosen.requires_grad_()
    torch.autograd.gradcheck(lambda c: reward_loss(c, rejected, 0.3, label_smoothing=0.1), chosen)
    d = torch.logit(torch.tensor([0.9], dtype=torch.float64)) + 0.3
    d.requires_grad_()
    reward_loss(d, torch.zeros(1, dtype=torch.float64), 0.3, label_smoothing=0.1).sum().backward()
    assert abs(float(d.grad)) < 1e-12


def test_loss_refuses_shapes_that_would_broadcast_and_impossible_smoothing():
    with pytest.raises(ValueError, match="one shape"):
        reward_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3, 1))
    for eps in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="label_smoothing"):
            reward_loss(torch.zeros(1), torch.zeros(1), label_smoothing=eps)


# The model


def test_a_new_head_is_drawn_by_the_seed_on_a_copy_of_the_backbone():
    causal = tiny_llama()
    before = [p.clone() for p in causal.parameters()]
    models = [reward_model(causal, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(models[0].score.weight, models[1].score.weight)
    assert not torch.equal(models[0].score.weight, models[2].score.weight)
    assert distance(models[0].base_model, causal.base_model) == 0
    with torch.no_grad():
        models[0].base_model.embed_tokens.weight.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, causal.parameters(), strict=True))
    assert reward_model(models[0]) is models[0]
    wide = reward_model(transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "hidden_size": 512})))
    assert float(wide.score.weight.detach().std()) == pytest.approx(513**-0.5, rel=0.15)


def test_models_without_a_scalar_head_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no scalar head"):
        reward_scores(tiny_llama(), collate(random_examples(1)))
    config = transformers.LlamaConfig(**SMALL, num_labels=2)
    with pytest.raises(ValueError, match="num_labels 1"):
        train_reward(transformers.LlamaForSequenceClassification(config), None, random_examples(2), quiet(tmp_path))
    with pytest.raises(ValueError, match="no sequence-classification form"):
        reward_model(tiny("Cohere"))
    with pytest.raises(ValueError, match="cannot load a model from"):
        reward_model(tmp_path / "nothing")


@pytest.mark.parametrize("pad", [0, None, EOS])
def test_saved_it_opens_in_plain_transformers_with_the_same_scores(tmp_path, pad):
    """With a pad of its own a padded batch agrees; with pad = EOS or none, single rows do, a batch is refused."""
    causal = tiny_llama()
    causal.config.pad_token_id = pad
    result = train_reward(causal, tiny_tokenizer(), random_examples(8), quiet(tmp_path, max_steps=2))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and type(plain).__name__ == "LlamaForSequenceClassification"
    examples = random_examples(4, seed=5)
    ours = reward_scores(result.model, collate(examples))
    rows = [torch.tensor(e.prompt + e.responses[0]) for e in examples]
    single = torch.stack([plain(row[None]).logits[0, 0] for row in rows])
    torch.testing.assert_close(single, ours[:, 0], atol=1e-5, rtol=1e-5)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else pad)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    if pad == 0:
        torch.testing.assert_close(plain(padded, attention_mask=mask).logits[:, 0], ours[:, 0], atol=1e-5, rtol=1e-5)
    else:
        with pytest.raises(ValueError, match="batch sizes > 1"):
            plain(padded, attention_mask=mask)
    again = reward_model(tmp_path)
    torch.testing.assert_close(reward_scores(again, collate(examples)), ours)


def test_the_trap_is_real():
    """transformers with pad_token_id = EOS reads another token than the response's EOS: why it is not saved so."""
    model = reward_model(tiny_llama()).eval()
    model.config.pad_token_id = EOS
    row = torch.tensor([[7, 8, 9, 4, EOS]])
    right = reward_scores(model, collate([Example((7, 8, 9), ((4, EOS),))]))[0, 0]
    assert (model(row).logits[0, 0] - right).abs() > 1e-2


# Training


def countable_examples(count: int, seed: int = 0) -> list[Example]:
    """What is preferred: the response with token 3 as its first. Both may end on the same tokens."""
    generator = random.Random(seed)

    def response(first: int) -> tuple[int, ...]:
        return (first, *(generator.randrange(5, VOCABULARY) for _ in range(3)), EOS)

    return [Example((generator.randrange(5, VOCABULARY), 2), (response(3), response(4)), row) for row in range(count)]


def test_it_learns_what_is_preferred_and_says_so_on_other_prompts(tmp_path):
    options = {"num_train_epochs": 6, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "eval_on_start": True}
    result = train_reward(
        tiny_llama(), None, countable_examples(64), quiet(tmp_path, **options), eval_examples=countable_examples(40, 1)
    )
    first, last = result.history[0], result.metrics
    assert last["eval_rewards/accuracies"] > 0.95 and last["eval_loss"] < 0.3 < first["eval_loss"]
    assert last["eval_rewards/margins"] == pytest.approx(
        last["eval_rewards/chosen"] - last["eval_rewards/rejected"], abs=1e-4
    )


def test_accumulation_and_batch_size_take_the_same_step(tmp_path):
    """One step on 8 pairs, on 2 x 4, and with the margins of each pair in its place whatever the order."""
    examples, margins = random_examples(8), [0.1 * i for i in range(8)]
    models = []
    for i, (size, accumulation) in enumerate(((8, 1), (4, 2))):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        run = quiet(tmp_path / str(i), learning_rate=1e-3, adam_epsilon=1.0, **options)
        models.append(train_reward(tiny_llama(), None, examples, run, margins=margins).model)
    assert distance(*models) < 1e-6
    fresh = reward_model(tiny_llama())
    assert distance(models[0], fresh) > 1e-5
    losses = reward_loss_fn(torch.tensor(margins), 0.0)(
        fresh, collate([examples[5], examples[2]]), torch.tensor([5, 2])
    )
    scores = reward_scores(fresh, collate([examples[5], examples[2]]))
    torch.testing.assert_close(losses.loss, -F.logsigmoid(scores[:, 0] - scores[:, 1] - torch.tensor([0.5, 0.2])))


def test_a_resumed_run_ends_where_the_whole_one_does_and_other_options_are_refused(tmp_path):
    examples = random_examples(12)
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_steps": 2}
    whole = train_reward(tiny_llama(), None, examples, quiet(tmp_path / "whole", **options))
    short = quiet(tmp_path / "cut", **options)
    train_reward(tiny_llama(), None, examples, short)
    for path in sorted((tmp_path / "cut").glob("checkpoint-*"))[1:]:  # as if killed after the first checkpoint kept
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    again = train_reward(tiny_llama(), None, examples, short)
    assert again.resumed_from is not None and distance(again.model, whole.model) == 0
    with pytest.raises(ValueError, match="objective"):
        train_reward(tiny_llama(), None, examples, short, label_smoothing=0.1)
    with pytest.raises(ValueError, match="objective"):
        train_reward(tiny_llama(), None, examples, short, margins=[1.0] * 12)


def test_bad_examples_and_margins_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs 2 response\(s\)"):
        train_reward(tiny_llama(), None, random_examples(2, 3), quiet(tmp_path))
    for margins in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="margins: one finite number"):
            train_reward(tiny_llama(), None, random_examples(2), quiet(tmp_path), margins=margins)


# The judge


def test_the_judge_scores_texts_as_their_own_rows_also_ragged_empty_and_too_long():
    path = small_model_path("tiny")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = reward_model(path).eval()
    judge = reward_judge(model, tokenizer, max_length=24, tokens_per_batch=60)
    prompts = ["Return the sum of two numbers. <tldr>", "word " * 40 + "<tldr>", "x <tldr>"]
    responses = [["Add numbers.", "Sum.", ""], ["Count words."], ["one two three " * 10, "y"]]
    scores = judge(prompts, responses)
    assert [len(row) for row in scores] == [3, 1, 2]
    oracle = Example(
        encode_prompt(prompts[0], tokenizer), (encode_response("Sum.", tokenizer), (tokenizer.eos_token_id,))
    )
    assert scores[0][1] == pytest.approx(float(alone(model, oracle, 0).detach()), abs=1e-4)
    assert scores[0][2] == pytest.approx(float(alone(model, oracle, 1).detach()), abs=1e-4)
    long, summary = encode_prompt(prompts[1], tokenizer), encode_response("Count words.", tokenizer)
    cut = Example(long[-(24 - len(summary)) :], (summary,))
    assert scores[1][0] == pytest.approx(float(alone(model, cut, 0).detach()), abs=1e-4)
    assert judge(prompts[2:], [["y"]])[0][0] == pytest.approx(scores[2][1], abs=1e-4)
    assert judge([], []) == []
    with pytest.raises(ValueError, match="responses to every prompt"):
        judge(prompts, responses[:2])
    with pytest.raises(ValueError, match="no scalar head"):
        reward_judge(tiny_llama(), tokenizer)


def test_values_of_rows_come_in_order():
    model = reward_model(tiny_llama()).eval()
    rows = [(e.prompt, response) for e in random_examples(5, 3) for response in e.responses]
    random.Random(0).shuffle(rows)
    values = values_of_rows(model, rows, reward_scores, tokens_per_batch=30)
    expected = [alone(model, Example(prompt, (response,)), 0) for prompt, response in rows]
    torch.testing.assert_close(values, torch.stack(expected).detach(), atol=1e-5, rtol=1e-5)


# The command


def test_train_reward_from_the_command_line(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    line = (
        '{"prompt": "Adds %d. <tldr>", "chosen": "Add.", "rejected": "No.", "chosen_score": 2, "rejected_score": 0.5}\n'
    )
    pairs.write_text("".join(line % i for i in range(6)))
    config = tmp_path / "reward.yaml"
    config.write_text(
        f"model_name_or_path: {small_model_path('tiny')}\ntrain_file: {pairs}\neval_file: {pairs}\nmargin_scale: 0.5\n"
        f"label_smoothing: 0.1\noutput_dir: {tmp_path / 'out'}\nmax_steps: 2\ndisable_tqdm: true\n"
    )
    assert main(["train", "reward", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "eval_rewards/accuracies" in shown and "always_longer" in shown and "always_shorter" in shown
    scalar_head(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"))
    pairs.write_text('{"prompt": "Adds.", "chosen": "Add.", "rejected": "No."}\n' * 3)
    assert main(["train", "reward", "--config", str(config), "--output_dir", str(tmp_path / "other")]) == 2
    assert "needs chosen_score and rejected_score, but 3 of 3 records" in capsys.readouterr().err


def test_score_margins_follow_the_rows_that_were_kept():
    records = [PreferenceRecord("p", "a", "b", 3.0, 1.0, row=4), PreferenceRecord("p", "a", "b", 2.0, 2.0, row=7)]
    records.append(PreferenceRecord("p", "a", "b", 9.0, 1.0, row=9))
    examples = [Example((2,), ((3,), (4,)), row=9), Example((2,), ((3,), (4,)), row=4)]
    assert score_margins(records, examples, 0.5) == [4.0, 1.0]
