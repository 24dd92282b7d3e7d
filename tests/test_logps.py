"""The log-prob engine against the plain padded path and against independent oracles, family by family."""

import math
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers

from rlhf_lab.data.examples import Example
from rlhf_lab.engine import attention, logps
from rlhf_lab.engine.attention import Packing
from rlhf_lab.engine.batches import Batch, collate
from rlhf_lab.engine.logps import packed_response_logps, plain_response_logps, response_logps

VOCABULARY = 61
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # large weights: attention far from uniform, so that a token seen or hidden by mistake shows
    "initializer_range": 0.3,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen3": GROUPED,
    "GPTNeoX": {},
    "Gemma": GROUPED,
    "GPT2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    # soft-capped logits; its soft-capped attention is what packed rows cannot do
    "Gemma2": {**GROUPED, "attn_logit_softcapping": None, "final_logit_softcapping": 2.0},
    "Granite": {"logits_scaling": 3.0},
    "Cohere": {"logit_scale": 0.25},
}


def tiny(family: str, **changes) -> transformers.PreTrainedModel:
    """A tiny random model of a family, in evaluation mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES.get(family, {}), **changes})
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return getattr(transformers, f"{family}{head}")(config).eval()


def random_examples(count: int, responses: int, seed: int = 0, longest: int = 9) -> list[Example]:
    generator = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, VOCABULARY) for _ in range(generator.randint(low, high)))

    return [Example(ids(1, 12), tuple(ids(1, longest) for _ in range(responses)), row) for row in range(count)]


def random_batch(count: int = 4, responses: int = 2, seed: int = 0, longest: int = 9) -> Batch:
    return collate(random_examples(count, responses, seed, longest))


def alone(model, example: Example, k: int) -> torch.Tensor:
    """Oracle: [T, V] log-probs at response k's tokens, from one row by itself, without padding or any sharing."""
    logits = model(torch.tensor([example.prompt + example.responses[k]]), use_cache=False).logits[0]
    return F.log_softmax(logits.float(), -1)[len(example.prompt) - 1 : -1]


def gradients(model, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weighted_sum(token_logps: torch.Tensor) -> torch.Tensor:
    """A scalar in which every token counts differently."""
    weights = torch.rand(token_logps.shape, generator=torch.Generator().manual_seed(1))
    return (weights * token_logps).sum()


def assert_same_gradients(ours: dict, theirs: dict, tolerance: float = 1e-4) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # a bias before softmax has gradient 0 up to rounding: there the norm of all gradients is the scale
        scale = expected.norm() + 1e-3 * torch.stack([g.norm() for g in theirs.values()]).norm()
        assert (ours[name] - expected).norm() <= tolerance * scale, name


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_plain_path_and_single_rows(family):
    """Values to 1e-5 for K = 1, 2, 3, with the alignment of each weighting; gradients to 1e-4 relative."""
    model = tiny(family)
    for responses in (1, 2, 3):
        batch = random_batch(responses=responses)
        ours = response_logps(model, batch, weighting="sampled")
        plain = plain_response_logps(model, batch, weighting="sampled")
        torch.testing.assert_close(ours.token_logps, plain.token_logps, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.alignment, plain.alignment, atol=1e-5, rtol=1e-5)
        for b, example in enumerate(batch.examples):
            for k, response in enumerate(example.responses):
                rows = alone(model, example, k)
                expected = rows[torch.arange(len(response)), list(response)]
                torch.testing.assert_close(ours.token_logps[b, k, : len(response)], expected, atol=1e-5, rtol=1e-5)
                collision = rows.double().exp().square().sum(-1).log().float()
                torch.testing.assert_close(ours.alignment[b, k, : len(response)], collision, atol=1e-5, rtol=1e-5)
        assert ours.token_logps[~batch.mask].eq(0).all() and ours.token_logps.dtype == torch.float32
    ours, plain = (weighted_sum(run(model, batch).token_logps) for run in (response_logps, plain_response_logps))
    assert_same_gradients(gradients(model, ours), gradients(model, plain))


def test_alignment_of_each_weighting():
    """greedy: log max_v pi(v); likelihood: 0; None: nothing. Never with gradient. lengths, logps: sums over tokens."""
    model, batch = tiny("Llama"), random_batch()
    greedy = response_logps(model, batch, weighting="greedy")
    for b, example in enumerate(batch.examples):
        best = alone(model, example, 1).amax(-1)
        torch.testing.assert_close(greedy.alignment[b, 1, : len(best)], best, atol=1e-5, rtol=1e-5)
    assert not greedy.alignment.requires_grad and greedy.token_logps.requires_grad
    assert response_logps(model, batch, weighting="likelihood").alignment.eq(0).all()
    assert response_logps(model, batch).alignment is None
    assert greedy.lengths.tolist() == [[len(r) for r in e.responses] for e in batch.examples]
    torch.testing.assert_close(greedy.logps, greedy.token_logps.sum(-1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_a_padded_run_on_either_side(side):
    """transformers' own padded batch, left or right padded, positions counted from the first real token."""
    model, batch = tiny("Llama"), random_batch()
    rows = [torch.tensor(e.prompt + e.responses[0]) for e in batch.examples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    ones = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    positions = (ones.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=ones, position_ids=positions, use_cache=False).logits
    ours = response_logps(model, batch)
    for b, example in enumerate(batch.examples):
        real = F.log_softmax(logits[b][ones[b].bool()], -1)[len(example.prompt) - 1 : -1]
        expected = real[torch.arange(len(example.responses[0])), list(example.responses[0])]
        torch.testing.assert_close(ours.token_logps[b, 0, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_does_not_depend_on_order_or_batch_size():
    model, examples = tiny("Qwen3"), random_examples(6, 2)
    together = response_logps(model, collate(examples)).logps
    backwards = response_logps(model, collate(examples[::-1])).logps.flip(0)
    singly = torch.cat([response_logps(model, collate([example])).logps for example in examples])
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(singly, together, atol=1e-5, rtol=1e-5)


def test_one_response_does_not_see_another():
    """Other tokens in the first response change nothing in the second and third, nor in the next example."""
    model, examples = tiny("Llama"), random_examples(2, 3)
    before = response_logps(model, collate(examples)).token_logps
    first, *others = examples[0].responses
    changed = Example(examples[0].prompt, (tuple(63 - token for token in first), *others))
    after = response_logps(model, collate([changed, examples[1]])).token_logps
    torch.testing.assert_close(after[0, 1:], before[0, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(after[1], before[1], atol=1e-6, rtol=0)
    assert (after[0, 0] - before[0, 0]).abs().max() > 0.1


@pytest.mark.usefixtures("no_warnings")
def test_head_in_chunks_gives_the_same(monkeypatch):
    """Chunks of 5 tokens (made again in backward) and tiles of 2 against the head in one piece."""
    model, batch = tiny("Gemma2"), random_batch()
    results = []
    for chunk, tile in ((2**25, 2**18), (5 * VOCABULARY, 2 * VOCABULARY)):
        monkeypatch.setattr(logps, "CHUNK_ELEMENTS", chunk)
        monkeypatch.setattr(logps, "TILE_ELEMENTS", tile)
        out = response_logps(model, batch, weighting="sampled")
        results.append((out.token_logps, out.alignment, gradients(model, weighted_sum(out.token_logps))))
    torch.testing.assert_close(results[1][:2], results[0][:2])
    assert_same_gradients(results[1][2], results[0][2], 1e-6)


def test_token_logps_gradient_is_onehot_minus_softmax():
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,))
    torch.autograd.gradcheck(lambda z: logps._TokenLogps.apply(z, targets, "sampled")[0], logits)
    out, alignment = logps._TokenLogps.apply(logits, targets, "sampled")
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(out, probabilities[torch.arange(7), targets].log())
    torch.testing.assert_close(alignment, probabilities.square().sum(-1).log())


def test_sums_are_float32_for_bf16_logits():
    """512 bf16 rows: the sum agrees with float64 from the same logits; a bf16 log-softmax misses by more than 1."""
    logits = (4 * torch.randn(512, 1000, generator=torch.Generator().manual_seed(0))).bfloat16()
    targets = torch.arange(512)
    exact = F.log_softmax(logits.double(), -1)[targets, targets].sum()
    ours = logps._TokenLogps.apply(logits, targets, None)[0].sum()
    careless = F.log_softmax(logits, -1)[targets, targets].sum()
    assert abs(float(ours - exact)) < 1e-2 < 1 < abs(float(careless - exact))


def test_bf16_autocast_is_near_float32():
    """Packed and plain, both under bf16 autocast, stay within bf16's rounding of float32, forward and backward."""
    model, batch = tiny("Llama", initializer_range=0.1), random_batch(8)
    exact = response_logps(model, batch).token_logps
    exact_gradients = gradients(model, weighted_sum(exact))
    with torch.autocast("cpu", torch.bfloat16):
        rough = response_logps(model, batch).token_logps
        plain = plain_response_logps(model, batch).token_logps
    assert rough.dtype == torch.float32
    error, plain_error = (float((value - exact).detach().abs().mean()) for value in (rough, plain))
    assert 0 < error < max(0.02, 2 * plain_error)
    for name, gradient in gradients(model, weighted_sum(rough)).items():
        assert (gradient - exact_gradients[name]).norm() < 0.1 * exact_gradients[name].norm() + 1e-3, name


def test_bf16_weights_run_packed():
    model = tiny("Llama").bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = response_logps(model, random_batch())
    assert out.token_logps.dtype == torch.float32


UNSUITED = {
    "Mistral": ({"sliding_window": 6, "num_key_value_heads": 2}, "looks back 6 tokens, but an example has 14"),
    "Gemma2": ({"attn_logit_softcapping": 50.0, "attn_implementation": "eager"}, "softcap"),
    "Bloom": ({"n_head": 4, "n_layer": 2}, "does not let its attention be set"),
    "Mamba": ({"state_size": 4}, "layers that are no attention"),
    # multiplies its logits by what others divide them by: found by the check alone
    "HyperCLOVAX": ({"logits_scaling": 2.0, "num_key_value_heads": 2}, "differ by"),
}


@pytest.mark.parametrize("family", UNSUITED)
def test_falls_back_with_one_warning(family):
    """A model that packed rows do not suit: one warning with the reason, the right values, and then silence."""
    changes, reason = UNSUITED[family]
    model, batch = tiny(family, **changes), random_batch(longest=12)
    with pytest.warns(UserWarning, match=reason) as caught:
        ours = response_logps(model, batch).token_logps
    assert len([w for w in caught if "plain padded path" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = response_logps(model, batch).token_logps
    for b, example in enumerate(batch.examples):
        expected = alone(model, example, 1)[torch.arange(len(example.responses[1])), list(example.responses[1])]
        torch.testing.assert_close(ours[b, 1, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, ours)


def test_a_window_matters_only_to_longer_examples():
    """Window 8: examples of up to 8 tokens run packed; the first longer batch falls back, and is right."""
    model = tiny("Mistral", sliding_window=8, num_key_value_heads=2)
    short, long = (collate([Example(tuple(range(3, 3 + n)), ((5, 6), (7,)))] * 2) for n in (6, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        response_logps(model, short)
    with pytest.warns(UserWarning, match="looks back 8 tokens, but an example has 14"):
        ours = response_logps(model, long)
    expected = alone(model, long.examples[0], 0)[[0, 1], [5, 6]]
    torch.testing.assert_close(ours.token_logps[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    """Layers run again in backward, after the call: they must still attend within the packed row."""
    model, batch = tiny("Llama").train(), random_batch()
    expected = gradients(model, weighted_sum(response_logps(model, batch).token_logps))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    losses = [weighted_sum(response_logps(model, batch).token_logps) for _ in range(2)]
    assert_same_gradients(gradients(model, sum(losses) / 2), expected, 1e-5)
    # other calls work meanwhile, padded ones too, and do not disturb a backward that is still to come
    pending = weighted_sum(response_logps(model, batch).token_logps)
    with torch.no_grad():
        plain = plain_response_logps(model, batch)
        torch.testing.assert_close(response_logps(model, batch).token_logps, plain.token_logps, atol=1e-5, rtol=1e-5)
    assert_same_gradients(gradients(model, pending), expected, 1e-5)
    # the first use without checkpointing restores the model's own attention
    model.gradient_checkpointing_disable()
    response_logps(model, batch)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_leaves_the_model_as_it_was(implementation):
    model = tiny("Llama", attn_implementation=implementation)
    model.train().model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    response_logps(model, random_batch())
    assert model.config._attn_implementation == implementation
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        packed_response_logps(model, collate([Example((VOCABULARY + 5,), ((1,),))]))
    assert model.config._attn_implementation == implementation


def test_dropout_in_attention_is_kept():
    """In training mode attention dropout acts (two runs differ, the mean is near); in evaluation mode it does not."""
    model, batch = tiny("Llama", attention_dropout=0.3), random_batch()
    exact = response_logps(model, batch).token_logps
    model.train()
    runs = torch.stack([response_logps(model, batch).token_logps for _ in range(2)]).detach()
    assert (runs[0] - runs[1]).abs().max() > 1e-3
    model.eval()
    torch.testing.assert_close(response_logps(model, batch).token_logps, exact)


def dense_attention(q, k, v, packing: Packing, scale: float) -> torch.Tensor:
    """Oracle: softmax over the whole row under a mask built pair by pair from the definition."""
    owner = [(e, part) for e, (p, rs) in enumerate(packing) for part, n in enumerate((p, *rs)) for _ in range(n)]
    sees = [[a[0] == b[0] and b[1] in (0, a[1]) and j <= i for j, b in enumerate(owner)] for i, a in enumerate(owner)]
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~torch.tensor(sees), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


PACKING = Packing([(5, (3, 4, 1)), (1, (7, 2, 2))])


@pytest.mark.parametrize("block", [2, 128])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_both_kernels_equal_a_dense_mask(monkeypatch, block, key_heads):
    """float64, in one block and in many, with grouped key heads: values and gradients to 1e-12."""
    monkeypatch.setattr(attention, "BLOCK", block)
    shapes = [(1, 4, 25, 6), (1, key_heads, 25, 6), (1, key_heads, 25, 6)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    upstream = torch.randn(1, 25, 4, 6, dtype=torch.float64)
    results = []
    for run in (
        dense_attention,
        attention._BlockAttention.apply,
        lambda *arguments: attention._sdpa_attention(*arguments, dropout=0.0),
    ):
        out = run(*inputs, PACKING, 0.3)
        results.append((out, *torch.autograd.grad(out, inputs, upstream)))
    torch.testing.assert_close(results[1], results[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(results[2], results[0], atol=1e-12, rtol=1e-12)


def test_refuses_bad_requests():
    with pytest.raises(ValueError, match="weighting='max' must be None or one of sampled, greedy, likelihood"):
        response_logps(tiny("Llama"), random_batch(), weighting="max")
    encoder_decoder = transformers.T5Config(vocab_size=61, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        response_logps(transformers.T5ForConditionalGeneration(encoder_decoder), random_batch())
