"""Models that are no plain decoders: windows, hybrids, rotary scalings, experts, noise; files that are not whole."""

import shutil
import warnings

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import collate
from rlhf_lab.engine.beams import beam_search
from rlhf_lab.engine.generate import complete, sample
from rlhf_lab.engine.limits import check_examples, choose_max_length, shortest_window
from rlhf_lab.engine.loading import load_model, load_tokenizer, model_source
from rlhf_lab.engine.logps import plain_response_logps, response_logps
from rlhf_lab.engine.models import disable_dropout
from rlhf_lab.engine.options import ending_ids
from rlhf_lab.judges.reward_model import reward_model
from rlhf_lab.objective import preset
from rlhf_lab.training.preference import preference_loss_fn, train_preference
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.training.sft import sft_loss
from tests.toy import save_toy, toy_model, toy_tokenizer

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 63,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def tiny(kind: str):
    torch.manual_seed(0)
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    return {
        "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=8, **SIZE)),
        "qwen2-moe": lambda: Qwen2MoeForCausalLM(
            Qwen2MoeConfig(shared_expert_intermediate_size=16, **windows, **EXPERTS, **SIZE)
        ),
        "phimoe": lambda: PhimoeForCausalLM(PhimoeConfig(sliding_window=8, num_local_experts=4, **SIZE)),
        "llama4": lambda: Llama4ForCausalLM(
            Llama4TextConfig(attention_chunk_size=8, intermediate_size_mlp=48, num_local_experts=2, **SIZE)
        ),
        "mamba": lambda: MambaForCausalLM(
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=63)
        ),
        "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(layer_types=["conv", "full_attention"], **SIZE)),
    }[kind]().eval()


KINDS = ["mistral", "qwen2-moe", "phimoe", "llama4", "mamba", "lfm2"]
PROMPTS = [list(range(1, 13)), [5, 6, 7]]  # the first is longer than the windows


def alone(model, prompt, response) -> torch.Tensor:
    """log pi(y_t | x, y_<t) from one unpadded row, by transformers alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].float()
    steps = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return torch.stack([logits[t].log_softmax(-1)[y] for t, y in zip(steps, response, strict=True)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_of_long_and_short_examples_are_those_of_single_rows(kind):
    """Short examples first, so that the comparison of packed and plain rows has seen no window."""
    model = tiny(kind)
    short = [Example((1, 2), ((3, 63), (4, 5, 63))), Example((7,), ((8, 63), (9, 63)))]
    long = [Example(tuple(range(1, 15)), ((3, 9, 63), (4, 63))), *short[:1]]
    with torch.no_grad():
        for examples in (short, long):
            found = response_logps(model, collate(examples, "cpu")).token_logps
            for b, example in enumerate(examples):
                for k, response in enumerate(example.responses):
                    expected = alone(model, example.prompt, response)
                    torch.testing.assert_close(found[b, k, : len(response)], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_carry_the_log_probs_of_single_rows(kind, n):
    model = tiny(kind)
    rows = complete(model, PROMPTS, eos_token_id=63, n=n, max_new_tokens=10, seed=1)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        for completion in row:
            expected = alone(model, prompt, completion.tokens)
            torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=2e-5, rtol=1e-4)


def test_windows_are_read_from_the_configuration():
    assert shortest_window(tiny("mistral")) == shortest_window(tiny("phimoe")) == shortest_window(tiny("llama4")) == 8
    assert shortest_window(toy_model()) == float("inf")


@pytest.mark.filterwarnings("ignore")
def test_trained_weights_are_compared_again():
    """Packed rows that were right at first and are wrong after 64 updates take the plain path from then on."""
    model = toy_model()
    batch = collate([Example((4, 5), ((6, 1), (7, 8, 1)))], "cpu")
    response_logps(model, batch)
    own = type(model.model).forward

    def leaky(self, *args, packing=None, **kwargs):
        outputs = own(self, *args, **kwargs) if packing is None else own(self, *args, packing=packing, **kwargs)
        if packing is not None:
            outputs.last_hidden_state = outputs.last_hidden_state + 1.0
        return outputs

    try:
        type(model.model).forward = leaky
        assert not torch.allclose(response_logps(model, batch).logps, plain_response_logps(model, batch).logps)
        with torch.no_grad():
            for _ in range(64):
                for parameter in model.parameters():
                    parameter.mul_(1.0)
        with pytest.warns(UserWarning, match="results differ"):
            found = response_logps(model, batch).logps
    finally:
        type(model.model).forward = own
    torch.testing.assert_close(found, plain_response_logps(model, batch).logps)


def longrope() -> Phi3ForCausalLM:
    torch.manual_seed(0)
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    scaling["original_max_position_embeddings"] = 16
    return Phi3ForCausalLM(Phi3Config(rope_scaling=scaling, original_max_position_embeddings=16, **SIZE)).eval()


def test_a_row_whose_log_probs_depend_on_its_neighbours_is_refused():
    """LongRoPE takes other frequencies for the whole batch once a row passes 16 tokens."""
    model = longrope()
    short, long = Example((1, 2), ((3, 63),)), Example(tuple(range(1, 20)), ((3, 63),))
    check_examples(model, [short, short])
    check_examples(model, [long, long])
    with pytest.raises(ValueError, match=r"'longrope'.*1 of 2 rows pass its original 16 tokens"):
        check_examples(model, [short, long])
    with pytest.raises(ValueError, match="longrope"):
        sample(model, [[1, 2, 3]], eos_token_id=63, max_new_tokens=20)
    assert sample(model, [[1, 2, 3]], eos_token_id=63, max_new_tokens=10)


@pytest.mark.parametrize("kind", ["starcoder2", "opt", "mixtral-jitter"])
def test_dropout_of_every_kind_is_switched_off(kind, tmp_path):
    """Learning rate 0, beta 1: the margin stays exactly where it was, at 0."""
    torch.manual_seed(0)
    noise = {"attention_dropout": 0.1, "residual_dropout": 0.1, "embedding_dropout": 0.1}
    model = {
        "starcoder2": lambda: Starcoder2ForCausalLM(Starcoder2Config(**noise, **SIZE)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=64,
                hidden_size=32,
                ffn_dim=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                word_embed_proj_dim=32,
                dropout=0.1,
                layerdrop=0.1,
                eos_token_id=63,
            )
        ),
        "mixtral-jitter": lambda: MixtralForCausalLM(
            MixtralConfig(router_jitter_noise=0.3, num_local_experts=4, **SIZE)
        ),
    }[kind]()
    model.config.rlhf_lab_name = kind  # the configuration stays writable
    examples = [Example((1, 2), ((3, 63), (4, 5, 63)), i) for i in range(4)]
    settings = TrainingSettings(
        output_dir=str(tmp_path), learning_rate=0.0, per_device_train_batch_size=4, save_steps=0, disable_tqdm=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train_preference(model, None, examples, preset("dpo", beta=1.0), settings)
    assert abs(result.metrics["rewards/margins"]) < 1e-4


def test_noise_that_cannot_be_switched_off_is_refused(monkeypatch):
    model = toy_model()
    monkeypatch.setattr(
        type(model.model.norm), "forward", lambda self, x: x * (1 + 0.1 * torch.rand(()) * self.training)
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM draws noise in training mode"):
        disable_dropout(model)


def test_the_load_balancing_loss_is_part_of_the_loss_as_in_transformers():
    """One response without padding: our aux is that of transformers' own forward, times its coefficient."""
    torch.manual_seed(0)
    config = MixtralConfig(num_local_experts=4, output_router_logits=True, router_aux_loss_coef=100.0, **SIZE)
    model = MixtralForCausalLM(config).eval()
    example = Example((1, 2, 3), ((4, 5, 63),))
    batch = collate([example], "cpu")
    theirs = model(input_ids=torch.tensor([[*example.prompt, *example.responses[0]]])).aux_loss
    result = response_logps(model, batch)
    torch.testing.assert_close(result.balancing, 100.0 * theirs, atol=1e-4, rtol=1e-5)
    losses = sft_loss(model, batch, torch.tensor([0]))
    mean = losses.loss.sum() / losses.weights.sum()
    torch.testing.assert_close(mean, -result.logps.mean() / 3 + 100.0 * theirs, atol=1e-4, rtol=1e-5)
    assert losses.metrics["router/aux_loss"].tolist() == pytest.approx([float(100.0 * theirs)], rel=1e-5)
    pair = collate([Example((1, 2), ((3, 63), (4, 63)))], "cpu")
    dpo = preference_loss_fn(preset("dpo", beta=0.1), torch.zeros(1, 2))
    with_aux = dpo(model, pair, torch.tensor([0]))
    model.config.output_router_logits = False
    without = dpo(model, pair, torch.tensor([0]))
    added = with_aux.metrics["router/aux_loss"]
    torch.testing.assert_close(with_aux.loss, without.loss + added)
    assert float(added) > 1.0 and "router/aux_loss" not in without.metrics


def test_a_response_ends_at_every_id_that_the_generation_config_names():
    """Chat models end a turn by another token than the tokenizer's EOS: the end is the union of both."""
    model, ids = toy_model(), [4, 5]
    model.generation_config.eos_token_id = [9, 1]
    config = model.generation_config
    assert ending_ids(1, config) == [1, 9] and ending_ids([1, 3], config) == [1, 3, 9]
    greedy = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20, pad_token_id=0)[0, 2:].tolist()
    assert sample(model, [ids], eos_token_id=1, greedy=True, max_new_tokens=20) == [[greedy]]
    for (response,) in sample(model, [ids] * 40, eos_token_id=1, max_new_tokens=20):
        ends = [token in (1, 9) for token in response]
        assert not any(ends[:-1]) and (ends[-1] or len(response) == 20)
    (best,) = beam_search(model, [ids], 2, eos_token_id=1, max_new_tokens=20)
    assert best.tokens[-1] in (1, 9) or len(best.tokens) == 20
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id is None"):
        ending_ids(None, config)


@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_numbers_name_the_prompt(greedy):
    model = toy_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match=r"prompt 1: .*token 0 are not numbers"):
        sample(model, [[4, 5], [4, 7]], eos_token_id=1, greedy=greedy, max_new_tokens=4)


def test_ids_beyond_the_embeddings_are_named():
    model = toy_model()
    size = model.get_input_embeddings().num_embeddings
    with pytest.raises(ValueError, match=f"row 3 has the token id {size}, but LlamaForCausalLM"):
        check_examples(model, [Example((1,), ((2, size),), 3)])
    with pytest.raises(ValueError, match=f"token id {size}"):
        sample(model, [[size]], eos_token_id=1, max_new_tokens=4)


# ---- files


def test_shipped_models_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_source("tiny").endswith("tiny") and load_tokenizer("tiny").eos_token
    (tmp_path / "tiny").mkdir()  # a folder of one's own comes first
    assert model_source("tiny") == "tiny"


def test_a_model_with_another_head_is_refused(tmp_path):
    reward_model(toy_model()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a LlamaForSequenceClassification, not a causal language model"):
        load_model(str(tmp_path))


def test_missing_weights_are_refused_not_drawn(tmp_path):
    model = toy_model()
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks 1 weight of a LlamaForCausalLM .*layers.1.mlp.up_proj"):
        load_model(str(tmp_path))


def test_an_encoder_is_no_causal_model(tmp_path):
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not causal: a later token changes what is predicted before it"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"), (None, "cannot load a model")],
)
def test_weights_that_are_cut_or_a_pointer_are_named(tmp_path, content, message):
    save_toy(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path))


def test_a_reward_model_whose_pad_is_its_eos_is_refused(tmp_path):
    """Plain transformers would score the token before the EOS: the same files, two scores."""
    model = reward_model(toy_model())
    assert isinstance(model, LlamaForSequenceClassification)
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(tmp_path)
    for given in (model, str(tmp_path)):
        with pytest.raises(ValueError, match=r"config.pad_token_id is its EOS"):
            reward_model(given)


def test_a_reference_with_other_tokens_is_refused(tmp_path):
    """Equal size, other meaning: two words have changed places."""
    folder = tmp_path / "other"
    save_toy(folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf8")
    text = text.replace('"read"', '"?"').replace('"write"', '"read"').replace('"?"', '"write"')
    (folder / "tokenizer.json").write_text(text, encoding="utf8")
    examples = [Example((4,), ((5, 1), (6, 1)))] * 2
    settings = TrainingSettings(output_dir=str(tmp_path / "out"), save_steps=0, disable_tqdm=True)
    arguments = (toy_tokenizer(), examples, preset("dpo"), settings)
    with pytest.raises(ValueError, match="has another tokenizer: 2 of 15 tokens have another id there"):
        train_preference(toy_model(), *arguments, reference=str(folder))
    shutil.rmtree(folder)


def test_models_without_a_stated_context_take_what_is_wanted():
    model = tiny("mamba")
    assert choose_max_length(model, 5000) == 5000 and choose_max_length(model, None) == 1024
    with pytest.raises(ValueError, match="--max_length 0: must be 1 or more"):
        choose_max_length(model, 0)
