"""Sampling: against transformers' own greedy search, the exact distribution, and itself at other batch sizes."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlhf_lab.engine import decoding
from rlhf_lab.engine.beams import beam_search
from rlhf_lab.engine.decoding import shares_prompts
from rlhf_lab.engine.draws import next_tokens, uniform_streams
from rlhf_lab.engine.generate import complete, in_bf16, response_token_logps, sample
from rlhf_lab.engine.repeated_prompts import RepeatedPrompts, left_pad
from rlhf_lab.engine.shared_prompts import SharedPrompts

EOS = 1


def tiny_llama(vocab: int = 40, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5, eos_token_id=EOS
    )
    return GPT2LMHeadModel(config).eval()


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [20, 21], [30, 31, 32, 33]]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_greedy_is_the_greedy_search_of_transformers(make):
    """One prompt at a time through `generate`, all prompts in one padded batch here: the same tokens."""
    model = make()
    ours = sample(model, PROMPTS, greedy=True, eos_token_id=EOS, max_new_tokens=12)
    for prompt, (response,) in zip(PROMPTS, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=12
        )
        assert response == theirs[0, len(prompt) :].tolist()


def test_log_probs_are_those_of_one_forward_pass():
    """log pi(y_t) at temperature 1, also when the draw was at temperature .7 from a nucleus."""
    model = tiny_llama()
    options = {"n": 3, "temperature": 0.7, "top_p": 0.9, "eos_token_id": EOS, "max_new_tokens": 10}
    for prompt, completions in zip(PROMPTS, complete(model, PROMPTS, **options), strict=True):
        for tokens, logps in completions:
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(logps), expected, atol=1e-5, rtol=1e-5)


def test_first_two_tokens_follow_the_model():
    """Chi-square of 8,000 drawn pairs (y1, y2) against pi(y1|x) pi(y2|x, y1), 6 x 6 cells and EOS ending early.

    31 cells: y1 = EOS (one cell) and 5 x 6 others, 30 degrees of freedom: the 99.9% point is 59.7.
    """
    model, prompt, draws = tiny_llama(vocab=6), [3, 4], 8000
    responses = sample(model, [prompt], n=draws, eos_token_id=EOS, max_new_tokens=2, seed=3)[0]
    first = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    chi_square = 0.0
    for a in range(6):
        if a == EOS:
            cells = {(a,): first[a].item()}
        else:
            second = model(torch.tensor([[*prompt, a]])).logits[0, -1].softmax(-1)
            cells = {(a, b): (first[a] * second[b]).item() for b in range(6)}
        for cell, probability in cells.items():
            chi_square += (responses.count(list(cell)) - draws * probability) ** 2 / (draws * probability)
    assert chi_square < 59.7
    assert chi_square > 10  # and not too good to be random (0.01% point 9.0)


def test_the_same_responses_at_every_batch_size_and_length():
    model = tiny_llama()
    options = {"n": 4, "eos_token_id": EOS, "seed": 7}
    whole = sample(model, PROMPTS, max_new_tokens=10, **options)
    for rows in (1, 4, 7, 11):
        assert sample(model, PROMPTS, max_new_tokens=10, rows_per_batch=rows, **options) == whole
    shorter = sample(model, PROMPTS, max_new_tokens=4, **options)
    assert shorter == [[response[:4] for response in row] for row in whole]
    assert sample(model, PROMPTS, max_new_tokens=10, **(options | {"n": 2})) == [row[:2] for row in whole]


def test_seeds_prompts_and_responses_have_streams_of_their_own():
    streams = torch.cat([uniform_streams(seed, [0, 1, 2], 4, 6) for seed in (0, 1)])
    assert len({tuple(row.tolist()) for row in streams}) == 2 * 3 * 4
    assert torch.equal(uniform_streams(0, [2], 4, 6), uniform_streams(0, [0, 1, 2], 4, 9)[8:, :6])


def test_responses_end_with_their_first_eos_and_only_there():
    """With 6 tokens EOS comes early and rows leave the batch at different steps; no row may lose its tokens."""
    model = tiny_llama(vocab=6)
    responses = [y for row in sample(model, [[3], [4, 5]], n=50, eos_token_id=EOS, max_new_tokens=8) for y in row]
    ended = [y for y in responses if EOS in y]
    assert all(y.index(EOS) == len(y) - 1 for y in ended)
    assert all(len(y) == 8 for y in responses if EOS not in y)
    assert len({len(y) for y in ended}) > 3


def test_sampling_does_not_disturb_the_model():
    model = tiny_llama().train()
    sample(model, PROMPTS, eos_token_id=EOS, max_new_tokens=2)
    assert model.training


def test_top_p_keeps_the_smallest_nucleus():
    """p = (.5, .3, .15, .05): top_p .5 keeps {0}, .51 and .8 {0, 1}, .81 {0, 1, 2}; drawn on a grid of u, renormalised.

    At .8: token 0 up to u = .5 / .8 = .625, so 625 of 1000 midpoints.
    """
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    grid = (torch.arange(1000) + 0.5) / 1000
    counts = {}
    for top_p in (0.4999, 0.51, 0.7999, 0.81, 1.0):
        drawn = next_tokens(probs.log().expand(1000, 4), grid, top_p=top_p)
        counts[top_p] = torch.bincount(drawn, minlength=4).tolist()
    assert counts[0.4999] == [1000, 0, 0, 0]
    assert counts[0.51] == counts[0.7999] == [625, 375, 0, 0]
    assert counts[0.81] == [526, 316, 158, 0]
    assert counts[1.0] == [500, 300, 150, 50]


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0), st.floats(0.2, 3.0), st.sampled_from([0.0, 0.5, 1 - 2**-24]))
def test_no_draw_leaves_the_nucleus(seed, top_p, temperature, u):
    """Even at the ends of [0, 1): the drawn token is possible, and the tokens above it have less than top_p of mass."""
    logits = 4 * torch.randn(5, 30, generator=torch.Generator().manual_seed(seed))
    logits[:, 20:] = -math.inf
    drawn = next_tokens(logits, torch.full((5,), u), temperature, top_p)
    probs = torch.softmax(logits.double() / temperature, -1)
    own = probs.gather(-1, drawn[:, None])
    assert (own > 0).all()
    assert ((probs * (probs > own)).sum(-1) < top_p + 1e-6).all()


def test_left_pad():
    ids, mask = left_pad([[5, 6], [7]], 0)
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"temperature": 0.0}, "greedy=True"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"greedy": True, "n": 2}, "ignored"),
        ({"greedy": True, "temperature": 0.5}, "ignored"),
        ({"max_new_tokens": 62}, "64 positions"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny_llama(), PROMPTS, eos_token_id=EOS, **({"max_new_tokens": 4} | changes))


def test_an_empty_prompt_is_named():
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        sample(tiny_llama(), [[3], []], eos_token_id=EOS)


def test_no_prompts_give_no_responses():
    assert sample(tiny_llama(), [], eos_token_id=EOS) == []


def test_each_response_has_its_temperature():
    """Response j is the one that temperature j alone would draw, for the stream is that of (seed, prompt, j)."""
    model, temperatures = tiny_llama(), (1.0, 0.7, 2.0)
    mixed = sample(model, PROMPTS, n=3, temperatures=temperatures, eos_token_id=EOS, max_new_tokens=6)
    for j, temperature in enumerate(temperatures):
        alone = sample(model, PROMPTS, n=3, temperature=temperature, eos_token_id=EOS, max_new_tokens=6)
        assert [row[j] for row in mixed] == [row[j] for row in alone]
    assert mixed != sample(model, PROMPTS, n=3, eos_token_id=EOS, max_new_tokens=6)


def test_log_probs_when_asked():
    model, options = tiny_llama(), {"n": 2, "eos_token_id": EOS, "max_new_tokens": 5}
    with_logps = sample(model, PROMPTS, return_logps=True, **options)
    assert with_logps == complete(model, PROMPTS, **options)
    assert [[c.tokens for c in row] for row in with_logps] == sample(model, PROMPTS, **options)


def test_bf16_runs_a_copy_with_exact_positions():
    """The copy's logits are within bf16's rounding, the model itself is untouched."""
    model = tiny_llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"n": 3, "eos_token_id": EOS, "max_new_tokens": 8}
    in_half = complete(model, PROMPTS, bf16=True, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    copied = in_bf16(model, True)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert torch.equal(copied.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert copied.model.rotary_emb.inv_freq.dtype == torch.float32
    errors = [
        abs(a - b)
        for prompt, row in zip(PROMPTS, in_half, strict=True)
        for completion in row
        for a, b in zip(completion.logps, response_token_logps(model, [prompt], [completion.tokens])[0], strict=True)
    ]
    assert 0 < sum(errors) / len(errors) < 0.1
    assert in_bf16(model, False) is model


def test_token_logps_are_those_of_one_forward_pass_in_any_order():
    model = tiny_llama()
    responses = [[4, 5, EOS], [6], [7, 8], [9] * 9, [3, EOS]]
    found = response_token_logps(model, PROMPTS, responses)
    for prompt, response, logps in zip(PROMPTS, responses, found, strict=True):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logps), expected, atol=1e-5, rtol=1e-5)


def test_a_wide_beam_finds_the_most_likely_response():
    """Six tokens, three steps: all 6 + 6 * 5 + .. responses are enumerated; width 40 covers them."""
    model, prompt = tiny_llama(vocab=6), [3, 4]
    finished, open_ = [], [[]]
    for _ in range(3):
        grown = [[*y, v] for y in open_ for v in range(6)]
        finished += [y for y in grown if y[-1] == EOS]
        open_ = [y for y in grown if y[-1] != EOS]
    everything = finished + open_
    totals = [sum(logps) for logps in response_token_logps(model, [prompt] * len(everything), everything)]
    best = max(range(len(everything)), key=totals.__getitem__)
    (found,) = beam_search(model, [prompt], 40, eos_token_id=EOS, max_new_tokens=3)
    assert found.tokens == everything[best]
    assert sum(found.logps) == pytest.approx(totals[best], abs=1e-4)


def test_a_beam_of_one_is_greedy_and_order_is_kept():
    model = tiny_llama()
    greedy = sample(model, PROMPTS, greedy=True, eos_token_id=EOS, max_new_tokens=6)
    narrow = beam_search(model, PROMPTS, 1, eos_token_id=EOS, max_new_tokens=6, prompts_per_batch=2)
    assert [[found.tokens] for found in narrow] == greedy
    whole = beam_search(model, PROMPTS, 3, eos_token_id=EOS, max_new_tokens=6)
    assert [
        f.tokens for f in beam_search(model, PROMPTS, 3, eos_token_id=EOS, max_new_tokens=6, prompts_per_batch=1)
    ] == [f.tokens for f in whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": (1.0, 0.7)}, "2 values for n=3"),
        ({"temperatures": (1.0, 0.7, 0.0)}, "temperature=0.0"),
        ({"temperatures": (1.0,) * 3, "temperature": 0.5}, "not both"),
    ],
)
def test_bad_temperatures_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny_llama(), PROMPTS, n=3, eos_token_id=EOS, **changes)


def test_a_beam_of_none_is_refused():
    with pytest.raises(ValueError, match="width=0"):
        beam_search(tiny_llama(), PROMPTS, 0, eos_token_id=EOS)


def tiny_mistral() -> MistralForCausalLM:
    """A sliding window of three tokens: what lies further back is not seen."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=40, num_key_value_heads=1, sliding_window=3, head_dim=8, initializer_range=0.5, **sizes
    )
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@torch.no_grad()
def test_a_shared_prompt_gives_the_logits_of_a_repeated_one(make):
    """40 tokens, more than the first room; rows leave, then all rows of a prompt (the longest one), then none."""
    model, n = make(), 3
    both = [kind(model, PROMPTS, n, EOS) for kind in (SharedPrompts, RepeatedPrompts)]
    rows = torch.arange(len(PROMPTS) * n)
    generator = torch.Generator().manual_seed(0)
    for t in range(40):
        torch.testing.assert_close(both[0].logits, both[1].logits[: len(both[0].logits)], atol=1e-4, rtol=1e-4)
        gone = {5: rows % 4 == 0, 11: rows // n == 2, 20: rows < 0}.get(t)
        if gone is not None:
            kept = (~gone).nonzero()[:, 0]
            rows = rows[kept]
            for state in both:
                state.keep(kept)
        tokens = torch.randint(2, 40, (len(rows),), generator=generator)
        for state in both:
            state.advance(tokens)
    assert len(both[0].bias) == len(PROMPTS) - 1
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("error")
def test_llamas_share_their_prompts():
    assert shares_prompts(tiny_llama())
    assert shares_prompts(tiny_llama().to(torch.bfloat16))


def test_beyond_a_window_prompts_are_repeated():
    """A sliding window would be ignored by the shared attention; greedy search is that of `generate` all the same."""
    model, options = tiny_mistral(), {"eos_token_id": EOS, "max_new_tokens": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = sample(model, PROMPTS, n=2, temperature=1e-4, **options)
    for prompt, row in zip(PROMPTS, pairs, strict=True):
        ids = torch.tensor([prompt])
        greedy = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=EOS
        )
        assert row == [greedy[0, len(prompt) :].tolist()] * 2


def test_a_wrong_sharing_is_noticed(monkeypatch):
    """An attention that runs but forgets the scale: the probe compares logits, and the prompt is repeated."""
    right = decoding.SharedPrompts.by_prompt
    monkeypatch.setattr(decoding.SharedPrompts, "by_prompt", lambda self, rows: 0.5 * right(self, rows))
    with pytest.warns(UserWarning, match="logits differ by"):
        assert not shares_prompts(tiny_llama())
