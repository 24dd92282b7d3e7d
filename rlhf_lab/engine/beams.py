"""Beam search on a language model: the likeliest response, which on a DPO policy is the search of From r to Q*."""

from collections.abc import Sequence

import torch

from rlhf_lab.engine.generate import Completion, in_bf16, response_token_logps
from rlhf_lab.engine.limits import has_only_attention
from rlhf_lab.engine.models import eval_mode
from rlhf_lab.engine.options import check_positive, check_prompts, cut_at_end, ending_ids, prompt_batches
from rlhf_lab.engine.repeated_prompts import left_pad


def beam_search(
    model,
    prompts: Sequence[Sequence[int]],
    width: int,
    *,
    eos_token_id: int | Sequence[int],
    max_new_tokens: int = 48,
    length_penalty: float = 0.0,
    bf16: bool | None = False,
    prompts_per_batch: int = 16,
) -> list[Completion]:
    """The best response that a beam of `width` finds to each prompt: argmax_y log pi(y|x) / |y|^length_penalty.

    By transformers' `generate`; width 1 is greedy search. length_penalty: 0 compares sums of log-probs, the search of
    From r to Q* (2404.12358); 1, transformers' own default, compares means and so favours length. bf16: of the search,
    as in `complete`.
    Returns tokens (EOS last, if it was produced) and log pi(y_t) of each under the model itself, by `response_logps`.
    Raises ValueError as `complete` does.
    """
    for name, value in (("width", width), ("max_new_tokens", max_new_tokens), ("prompts_per_batch", prompts_per_batch)):
        check_positive(name, value)
    check_prompts(model, prompts, max_new_tokens)
    ends = ending_ids(eos_token_id, getattr(model, "generation_config", None))
    beams = {"num_beams": width, "length_penalty": length_penalty} if width > 1 else {}
    found: dict[int, list[int]] = {}
    with eval_mode(model), torch.inference_mode():
        searched = in_bf16(model, bf16)
        for batch in prompt_batches(prompts, prompts_per_batch, one_length=not has_only_attention(model)):
            ids, mask = left_pad([prompts[i] for i in batch], ends[0], model.device)  # [B, P]
            sequences = searched.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                repetition_penalty=1.0,
                **beams,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
            responses = sequences[:, ids.shape[1] :].tolist()  # B rows of up to max_new_tokens
            found |= {i: cut_at_end(tokens, ends) for i, tokens in zip(batch, responses, strict=True)}
    responses = [found[i] for i in range(len(prompts))]
    return [Completion(*both) for both in zip(responses, response_token_logps(model, prompts, responses), strict=True)]
