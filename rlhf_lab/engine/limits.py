"""What a model can be given: how long, in which company, and with which token ids.

Most models take any batch up to their context. Some change what they compute with the longest example of a batch
(rotary scalings) or stop looking back beyond a window, and only their configuration says so.
"""

from collections.abc import Iterable, Sequence

from rlhf_lab.data.examples import Example

# Without max_length: this, or the model's context if that is shorter.
DEFAULT_MAX_LENGTH = 1024
# Layers whose attention a packed row with shared prompts can serve, windows permitting.
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def context_length(model) -> int | None:
    """Positions that the model was made for, or None if its configuration states none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def choose_max_length(model, wanted: int | None) -> int:
    """`wanted`, or 1024 within the model's context; a model that states no context takes what is wanted.

    Raises ValueError if `wanted` is below 1 or beyond the context.
    """
    context = context_length(model)
    if wanted is not None and wanted < 1:
        raise ValueError(f"--max_length {wanted}: must be 1 or more")
    if wanted is not None and context is not None and wanted > context:
        raise ValueError(f"--max_length {wanted} is longer than the model's context of {context} tokens")
    return wanted or min(DEFAULT_MAX_LENGTH, context or DEFAULT_MAX_LENGTH)


def shortest_window(model) -> float:
    """Tokens that every attention layer can look back, infinite without sliding windows or chunks.

    Read from the configuration, because many models put their window into the mask and do not tell the attention.
    """
    config = model.config.get_text_config()
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    windows = [float(window) for window in named if isinstance(window, int) and window > 0]
    kinds = set(getattr(config, "layer_types", None) or ())
    if getattr(config, "use_sliding_window", True) is False or kinds == {"full_attention"}:
        return float("inf")
    return min(windows, default=float("inf"))


def has_only_attention(model) -> bool:
    """False for hybrids: a convolution or a recurrent state runs through a packed row across its responses."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return kinds <= ATTENTION_LAYERS


def check_examples(model, examples: Sequence[Example]) -> None:
    """Raises ValueError if `model` cannot take these examples: ids beyond its embeddings, or `check_lengths`."""
    size = model.get_input_embeddings().num_embeddings
    for example in examples:
        highest = max(max(ids, default=0) for ids in (example.prompt, *example.responses))
        if highest >= size:
            raise ValueError(
                f"row {example.row} has the token id {highest}, but {type(model).__name__} has embeddings for "
                f"{size} ids (0 to {size - 1}): tokenizer and model do not belong together, or tokens were added "
                "without model.resize_token_embeddings(len(tokenizer))"
            )
    check_lengths(model, (len(e.prompt) + len(response) for e in examples for response in e.responses))


def check_lengths(model, lengths: Iterable[int]) -> None:
    """Raises ValueError if a scaling of the rotary positions would make one row depend on a longer one beside it.

    "longrope" takes other frequencies for the whole batch once its longest row passes the original context, "dynamic"
    ones for every length beyond it: the same row would have other log-probs in other company.
    """
    kind, original = _length_dependent_rotary(model)
    if kind is None:
        return
    lengths = list(lengths)
    longer = sum(length > original for length in lengths)
    if longer and (kind == "dynamic" or longer < len(lengths)):
        raise ValueError(
            f"{type(model).__name__} scales its rotary positions by {kind!r}, which depends on the longest row of a "
            f"batch: {longer} of {len(lengths)} rows pass its original {original} tokens. Keep all rows within "
            f"{original} (--max_length {original})" + (", or all beyond" if kind == "longrope" else "")
        )


def _length_dependent_rotary(model) -> tuple[str | None, int]:
    config = model.config.get_text_config()
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [scaling, *(part for part in scaling.values() if isinstance(part, dict))]
    for part in each:
        kind = part.get("rope_type", part.get("type"))
        if kind in ("longrope", "dynamic"):
            named = part.get("original_max_position_embeddings")
            named = named or getattr(config, "original_max_position_embeddings", None)
            return kind, int(named or config.max_position_embeddings)
    return None, 0
