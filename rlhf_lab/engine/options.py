"""What may be asked of sampling and of beam search: options checked and completed, prompts put into batches."""

from collections.abc import Sequence

from transformers import GenerationConfig

from rlhf_lab.common.words import counted
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.limits import check_examples, check_lengths, context_length


def each_temperature(n: int, temperature: float, temperatures: Sequence[float] | None) -> list[float]:
    """One temperature for each of the n responses."""
    if temperatures is None:
        return [temperature] * n
    if temperature != 1.0:
        raise ValueError(f"give {temperature=} for all responses or {temperatures=} for each, not both")
    if len(temperatures) != n:
        raise ValueError(f"temperatures has {len(temperatures)} values for n={n} responses: give one for each")
    return list(temperatures)


def check_sampling(n: int, temperatures: list[float], top_p: float, max_new_tokens: int) -> None:
    """Raises ValueError that names the setting that is out of range."""
    check_positive("n", n)
    check_positive("max_new_tokens", max_new_tokens)
    for temperature in temperatures:
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature}: must be above 0; for the most likely tokens use greedy=True")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p}: must be in (0, 1]")


def check_positive(name: str, value: int) -> None:
    """Raises ValueError unless value >= 1."""
    if value < 1:
        raise ValueError(f"{name}={value}: must be 1 or more")


def check_prompts(model, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises ValueError for an empty prompt, one beyond the model's positions, or ids beyond its embeddings."""
    max_positions = context_length(model)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} has no token; give it at least a BOS or separator token")
        if max_positions is not None and len(prompt) + max_new_tokens > max_positions:
            raise ValueError(
                f"prompt {i} has {counted(len(prompt), 'token')}; with max_new_tokens={max_new_tokens} it passes the "
                f"model's {max_positions} positions: truncate the prompt or lower max_new_tokens"
            )
    check_examples(model, [Example(tuple(prompt), (), i) for i, prompt in enumerate(prompts)])
    # a row may not cross the length at which a scaling of its positions changes, nor stand beside one that does
    ends = [length for prompt in prompts for length in (len(prompt), len(prompt) + max_new_tokens)]
    check_lengths(model, ends)


def cut_at_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first id that ends a response, that included."""
    found = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: found + 1]


def ending_ids(eos_token_id: int | Sequence[int], config: GenerationConfig | None = None) -> list[int]:
    """What ends a response: the given id or ids, and those of the model's generation config, as `generate` has it.

    Chat models end a turn by another token than the tokenizer's EOS, and name both in generation_config.json.
    """
    configured = getattr(config, "eos_token_id", None)
    ends: list[int] = []
    for given in (eos_token_id, configured):
        ids = given if isinstance(given, list | tuple) else [given]
        ends += [token for token in ids if token is not None and token not in ends]
    if not ends:
        raise ValueError("eos_token_id is None: name the token that ends a response")
    return ends


def prompt_batches(prompts: Sequence[Sequence[int]], size: int, *, one_length: bool = False) -> list[list[int]]:
    """Indices of the prompts, shortest first, `size` at a time; one_length: no batch mixes lengths."""
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches: list[list[int]] = []
    for i in by_length:
        full = not batches or len(batches[-1]) == size
        if full or (one_length and len(prompts[batches[-1][0]]) != len(prompts[i])):
            batches.append([])
        batches[-1].append(i)
    return batches
