"""Tiny random models, tokenizers and examples for the tests of training; nothing is downloaded."""

import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lab.data.examples import Example
from rlhf_lab.training.settings import TrainingSettings

VOCABULARY = 40
EOS = 1


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """10,000 random weights; with logits spread enough that log-probs differ between responses."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype)


def tiny_gpt2_with_dropout(seed: int = 0) -> GPT2LMHeadModel:
    """A model whose training mode is noisy: dropout 0.5 everywhere."""
    torch.manual_seed(seed)
    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=1, n_head=2, **rates))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token: <pad>, <eos>, w2, w3, .."""
    words = {"<pad>": 0, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def random_examples(count: int, responses: int = 2, seed: int = 0) -> list[Example]:
    """Prompts of 3-12 and responses of 2-7 random tokens, EOS included; rows count from 100."""
    generator = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(generator.randrange(2, VOCABULARY) for _ in range(generator.randint(low, high)))

    return [Example(ids(3, 12), tuple((*ids(1, 6), EOS) for _ in range(responses)), 100 + row) for row in range(count)]


def quiet(output_dir, **changes) -> TrainingSettings:
    """Settings for a silent run on the CPU."""
    defaults = {
        "learning_rate": 1e-2,
        "num_train_epochs": 1.0,
        "logging_steps": 1,
        "device": "cpu",
        "disable_tqdm": True,
    }
    return TrainingSettings(output_dir=output_dir, **(defaults | changes))


def distance(first: torch.nn.Module, second: torch.nn.Module) -> float:
    """The largest absolute difference between the weights of two models."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
