"""Reference log-probs: right numbers, one key per content, and a cache that is whole, checked or recomputed."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.logps import plain_response_logps
from rlhf_lab.objective import Objective
from rlhf_lab.training import reference
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.reference import cache_key, reference_logps
from tests.training_helpers import distance, quiet, random_examples, tiny_gpt2_with_dropout, tiny_llama

PAIRS = random_examples(20)


def compute(model, examples=PAIRS, cache_dir=None, **options):
    return reference_logps(model, examples, cache_dir=cache_dir, disable_tqdm=True, **options)


@pytest.mark.parametrize("tokens", [30, 10_000])
def test_values_are_the_plain_logps_in_the_examples_order(tokens):
    """Also for a model in training mode with dropout: a reference has none, and the mode is given back."""
    model = tiny_gpt2_with_dropout().train()
    values = compute(model, tokens_per_batch=tokens)
    assert model.training and not values.requires_grad
    with torch.no_grad():
        expected = plain_response_logps(model.eval(), collate(PAIRS)).logps
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)


def test_the_cache_is_read_and_equals_what_was_computed(tmp_path, monkeypatch):
    model = tiny_llama()
    first = compute(model, cache_dir=tmp_path)
    assert torch.equal(first, compute(model))
    monkeypatch.setattr(reference, "_compute", None)  # calling it again would fail
    assert torch.equal(first, compute(model, cache_dir=tmp_path))
    assert [p.name.startswith("reference-") for p in tmp_path.iterdir()] == [True]


def test_training_is_the_same_with_a_cold_and_a_warm_cache(tmp_path):
    runs = [
        train_preference(tiny_llama(), None, PAIRS, Objective(), quiet(tmp_path / name), cache_dir=tmp_path / "cache")
        for name in ("cold", "warm")
    ]
    assert distance(runs[0].model, runs[1].model) == 0.0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_key_changes_with_everything_that_changes_the_numbers():
    def changed_weight():
        model = tiny_llama()
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
        return model

    def changed_config():
        model = tiny_llama()
        model.config.rms_norm_eps = 1e-3
        return model

    first, *rest = PAIRS
    moved = Example(first.prompt[:-1], (first.prompt[-1:] + first.responses[0], first.responses[1]), first.row)
    keys = [
        cache_key(tiny_llama(), PAIRS, bf16=False),
        cache_key(tiny_llama(), PAIRS, bf16=True),
        cache_key(tiny_llama(dtype=torch.float64), PAIRS, bf16=False),
        cache_key(changed_weight(), PAIRS, bf16=False),
        cache_key(changed_config(), PAIRS, bf16=False),
        cache_key(tiny_llama(), PAIRS[::-1], bf16=False),
        cache_key(tiny_llama(), PAIRS[:-1], bf16=False),
        cache_key(tiny_llama(), [moved, *rest], bf16=False),  # a boundary moved: the same ids, another mask
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(tiny_llama(), list(PAIRS), bf16=False) == keys[0]


def test_fingerprints_ignore_where_things_come_from(tmp_path):
    """A saved and reloaded model is the same reference; row numbers are no part of the data."""
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    assert model_fingerprint(type(model).from_pretrained(tmp_path)) == model_fingerprint(model)
    assert model_fingerprint(model.to(torch.bfloat16)) != model_fingerprint(tiny_llama())
    renumbered = [Example(p.prompt, p.responses, p.row + 1) for p in PAIRS]
    assert data_fingerprint(renumbered) == data_fingerprint(PAIRS)


def break_bytes(path):
    path.write_bytes(path.read_bytes()[:-8])


def break_header(path):
    path.write_bytes(b"no safetensors")


def break_coverage(path):
    save_file({"logps": load_file(path)["logps"][:-1]}, path)


def break_values(path):
    logps = load_file(path)["logps"]
    logps[3, 1] = float("nan")
    save_file({"logps": logps}, path)


def break_name(path):
    save_file({"other": load_file(path)["logps"]}, path)


@pytest.mark.parametrize("harm", [break_bytes, break_header, break_coverage, break_values, break_name])
def test_a_broken_cache_is_noticed_and_computed_again(tmp_path, harm):
    model = tiny_llama()
    first = compute(model, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    harm(path)
    with pytest.warns(UserWarning, match="unusable"):
        assert torch.equal(compute(model, cache_dir=tmp_path), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(compute(model, cache_dir=tmp_path), first)


def test_a_crash_while_writing_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "flush", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compute(tiny_llama(), cache_dir=tmp_path)
    assert not list(tmp_path.glob("reference-*"))


def test_a_reference_that_is_not_finite_is_refused(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[PAIRS[4].prompt[0]] = float("nan")
    with pytest.raises(ValueError, match=r"not finite for \d+ rows"):
        compute(model, cache_dir=tmp_path)
    assert not any(tmp_path.iterdir())
