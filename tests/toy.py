"""A toy language of nine words: a model, its tokenizer, and documents, for tests of whole jobs in seconds."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lab.data.docstrings import DocstringPair

WORDS = ["read", "write", "open", "close", "file", "socket", "table", "row", "key"]


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token; <eos> is 1, <tldr> is 2; A and B are what a pairwise judge answers."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<tldr>", "<unk>", *WORDS, "A", "B"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<tldr>"], **special)


def toy_model(seed: int = 0, width: int = 16) -> LlamaForCausalLM:
    """Random weights: 8,000 at width 16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=6 + len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def save_toy(folder, width: int = 16) -> str:
    """Model and tokenizer in a folder, as text."""
    toy_model(width=width).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def toy_corpus(count: int = 90) -> list[DocstringPair]:
    """Documents of eight random words whose summary is always "open file key": a preference that can be learned."""
    rng = np.random.default_rng(0)
    splits = ["validation", "validation", "test"]
    return [
        DocstringPair(" ".join(rng.choice(WORDS, 8)), "open file key", splits[i % 3], "toy", str(i))
        for i in range(count)
    ]
