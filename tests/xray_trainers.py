"""A small trainer in plain torch, and mutants of it, for the X-ray's tests."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_lab.xray.trainers import Job

Row = tuple[list[int], list[int]]  # prompt, response


def rows_of(job: Job, ending: bool = True) -> list[list[Row]]:
    """[chosen rows, rejected rows] as ids: BOS before the prompt, EOS behind the response."""
    rows: list[list[Row]] = [[], []]
    for row in job.rows:
        prompt = job.tokenizer(row["prompt"]).input_ids
        for side, name in enumerate(("chosen", "rejected")):
            ids = job.tokenizer(row[name], add_special_tokens=False).input_ids
            rows[side].append((prompt, ids + [job.tokenizer.eos_token_id] * ending))
    return rows


def padded(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """ids [B, L] and the mask of response tokens [B, L]."""
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for line, (prompt, response) in enumerate(rows):
        ids[line, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[line, len(prompt) : len(prompt) + len(response)] = True
    return ids, mask


def shifted(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """sum_t log pi(y_t): the logits at t - 1 predict the token at t."""
    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logps * mask[:, 1:]).sum(-1)


def unshifted(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Each token is to predict itself."""
    return (torch.log_softmax(logits, -1).gather(-1, ids[..., None])[..., 0] * mask).sum(-1)


def in_bf16(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return shifted(logits.bfloat16(), ids, mask).float()


def with_padding(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return shifted(logits, ids, mask.cumsum(-1) > 0)


def weight_of(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """WPO's sampled weight of each response, with gradient."""
    token_logps = torch.log_softmax(logits[:, :-1], -1)
    excess = token_logps.gather(-1, ids[:, 1:, None])[..., 0] - torch.logsumexp(2 * token_logps, -1)
    return torch.exp((excess * mask[:, 1:]).sum(-1) / mask.sum(-1))


def plain_trainer(
    job: Job,
    *,
    logps: Callable[[Tensor, Tensor, Tensor], Tensor] = shifted,
    ending: bool = True,
    averaged: bool = True,
    weight: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    reference_mode: bool = False,
    policy_mode: bool = False,
    reference: Callable[[Job], nn.Module] = lambda job: job.reference,
) -> None:
    """DPO with beta .1 by SGD; averaged: accumulated batches count as one; *_mode: training mode of the model."""
    rows = rows_of(job, ending)
    job.model.train(policy_mode)
    optimizer = torch.optim.SGD(job.model.parameters(), lr=job.learning_rate)
    for _ in range(job.steps):
        frozen = reference(job).train(reference_mode)
        for first in range(0, len(job.rows), job.batch_size):
            h, weights = [], torch.ones(())
            for side in rows:
                ids, mask = padded(side[first : first + job.batch_size], job.tokenizer.pad_token_id)
                with torch.no_grad():
                    base = logps(frozen(ids).logits, ids, mask)
                logits = job.model(ids).logits
                h.append(logps(logits, ids, mask) - base)
                weights = weights if weight is None else weights * weight(logits, ids, mask)
            loss = -(weights * F.logsigmoid(0.1 * (h[0] - h[1]))).mean()
            (loss / job.accumulation if averaged else loss).backward()
        optimizer.step()
        optimizer.zero_grad()


def following(job: Job) -> nn.Module:
    """A reference that is the policy of the last step, once there is one."""
    first = not hasattr(job.model, "steps_seen")
    job.model.steps_seen = True
    return job.reference if first else job.model


TRAINERS: dict[str, tuple[Callable[[Job], None], list[str]]] = {
    "right": (plain_trainer, []),
    "reference in training mode": (partial(plain_trainer, reference_mode=True), ["reference in training mode"]),
    "dropout in the policy": (partial(plain_trainer, policy_mode=True), ["dropout in the policy"]),
    "accumulation without average": (partial(plain_trainer, averaged=False), ["accumulation not averaged"]),
    "no EOS": (partial(plain_trainer, ending=False), ["EOS dropped"]),
    "logits not shifted": (partial(plain_trainer, logps=unshifted), ["gradient beside the tokens"]),
    "log-softmax in bf16": (partial(plain_trainer, logps=in_bf16), ["low-precision sums"]),
    "weight not detached": (partial(plain_trainer, weight=weight_of), ["gradient beside the tokens"]),
    "padding counted": (partial(plain_trainer, logps=with_padding), ["padding counted"]),
    "reference follows the policy": (partial(plain_trainer, reference=following), ["moving reference"]),
}
