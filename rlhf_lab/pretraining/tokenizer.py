"""The small models' tokenizer: byte-level BPE, so that any text has tokens, with three special ones."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, TLDR = "<pad>", "<eos>", "<tldr>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens; <pad> is 0, <eos> 1, <tldr> 2.

    Every text begins as if after a space, so that a summary's first word has the token it has inside a sentence.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # lstrip: the space before <tldr> belongs to it and is no token of its own.
        special_tokens=[PAD, EOS, AddedToken(TLDR, lstrip=True, special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def for_transformers(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it: no BOS, EOS ends a summary and a document."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[TLDR],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
