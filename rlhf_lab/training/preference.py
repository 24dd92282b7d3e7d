"""Preference training: DPO, cDPO, WPO, VPO online and offline, XPO and RPO, by the one objective."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lab.common.files import check_writable
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import Batch, collate
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.logps import ResponseLogps, response_logps
from rlhf_lab.engine.models import check_responses, disable_dropout, eval_mode
from rlhf_lab.engine.precision import autocast, pick_device
from rlhf_lab.objective import Objective, preference_loss, wpo_weights
from rlhf_lab.training.defaults import with_defaults
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint
from rlhf_lab.training.loop import Losses, LossFunction, TrainingResult, train
from rlhf_lab.training.metrics import accuracies
from rlhf_lab.training.preflight import check_run
from rlhf_lab.training.reference import reference_logps
from rlhf_lab.training.run_folder import refuse_model_folder, run_folder
from rlhf_lab.training.schedule import epoch_steps
from rlhf_lab.training.settings import TrainingSettings

# Policy and reference are one model before the first step, but batches of another shape round differently: by this many
# nats per response token on average, at most.
TOLERANCE_FLOAT32 = 1e-3
TOLERANCE_BF16 = 5e-2


def train_preference(
    model: PreTrainedModel | str | Path,
    tokenizer,
    examples: Sequence[Example],
    objective: Objective,
    settings: TrainingSettings,
    *,
    eval_examples: Sequence[Example] | None = None,
    reference: PreTrainedModel | str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> TrainingResult:
    """Train a model (or the model at a path or hub id) on comparisons with `objective`; a model is trained in place.

    examples: responses (chosen, rejected), and a third one, the calibration response, if the objective needs it.
    reference: another model or path; None: the model's own initial weights. Its log-probs are computed first, in a
    phase of their own, and cached in cache_dir (default: output_dir/reference); no second model stays in memory.
    tokenizer: saved beside the result, may be None. Dropout is switched off in the model.
    Metrics: `rewards/..` and `logps/..` as in TRL, `logps/chosen_displacement` = mean h(y+), `vpo/bonus` if alpha > 0,
    `wpo/weight_mean` if weighted. Raises ValueError for examples of the wrong shape, a reference that is not what it
    should be, or a checkpoint of another run; FloatingPointError if a loss or gradient is not finite.
    """
    check_columns(examples, objective, "examples")
    check_columns(eval_examples or (), objective, "eval_examples")
    refuse_model_folder(settings.output_dir, model, reference)
    model = load_model(model).to(pick_device(settings.device))
    settings = with_defaults(settings, "preference", model)
    check_run(model, examples, settings, eval_examples)
    disable_dropout(model)
    own = model_fingerprint(model)
    identity = {"task": "preference", "objective": repr(objective), "model": own, "data": data_fingerprint(examples)}

    if reference is not None and not isinstance(reference, nn.Module):
        check_same_tokens(tokenizer, reference)
    reference_model = model if reference is None else load_model(reference).to(model.device)
    identity["reference"] = own if reference is None else model_fingerprint(reference_model)
    if cache_dir is not None:
        check_writable(Path(cache_dir), "--cache_dir")
    cached = {
        "cache_dir": cache_dir or Path(settings.output_dir) / "reference",
        "bf16": settings.bf16,
        "fingerprint": identity["reference"],
        "disable_tqdm": settings.disable_tqdm,
    }
    with run_folder(settings, identity | settings.identity()):  # before hours of log-probs, not after them
        ref_logps = reference_logps(reference_model, examples, **cached).to(model.device)
        eval_ref_logps = reference_logps(reference_model, eval_examples or (), **cached).to(model.device)
        del reference_model
        if reference is None:
            assert_margin_zero(model, examples, ref_logps, settings)
        return train(
            model,
            examples,
            preference_loss_fn(objective, ref_logps),
            settings,
            eval_examples=eval_examples,
            eval_loss_fn=preference_loss_fn(objective, eval_ref_logps),
            tokenizer=tokenizer,
            identity=identity,
        )


def check_columns(examples: Sequence[Example], objective: Objective, name: str) -> None:
    """Raises ValueError with the remedies unless examples have a calibration response if and only if it is needed."""
    if not objective.needs_calibration:
        return check_responses(examples, 2, name, "preference training")
    odd = [example for example in examples if len(example.responses) != 3]
    if odd:
        raise ValueError(
            f"{name}: alpha {objective.alpha:g} with calibration {objective.calibration!r} needs 3 responses: chosen, "
            f"rejected, and one drawn from the policy that calibrates; {len(odd)} of {len(examples)} examples have "
            f"another number, e.g. row {odd[0].row} with {len(odd[0].responses)}. Either --calibration chosen (or "
            "rejected) takes the pair's own; or a column `calibration` has such responses (--columns "
            "calibration=their_name); or `rlhf-lab train online` draws them; or --alpha 0 does without"
        )


def check_same_tokens(tokenizer, reference: str | Path) -> None:
    """Raises ValueError unless the reference's tokenizer gives every id the same meaning; one without any passes."""
    if tokenizer is None:
        return
    try:
        other = load_tokenizer(reference)
    except ValueError:
        return  # a folder of weights alone: nothing says that they mean other tokens
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    differ = [token for token, place in ours.items() if theirs.get(token) != place]
    if differ:
        raise ValueError(
            f"the reference {str(reference)!r} has another tokenizer: {len(differ)} of {len(ours)} tokens have another "
            f"id there, e.g. {differ[0]!r}. Its log-probs would be of other text; choose a reference of the same family"
        )


def preference_loss_fn(objective: Objective, ref_logps: Tensor) -> LossFunction:
    """The loop's loss function for an objective; ref_logps: [N, K] for all examples, on the model's device."""

    def loss_fn(model: PreTrainedModel, batch: Batch, rows: Tensor) -> Losses:
        return preference_losses(
            objective, response_logps(model, batch, weighting=objective.weighting), ref_logps[rows]
        )

    return loss_fn


def preference_losses(objective: Objective, policy: ResponseLogps, ref_logps: Tensor) -> Losses:
    """The objective on a batch: policy's and reference's log-probs of (chosen, rejected[, calibration]) -> Losses.

    ref_logps: [B, K]. Each pair counts once, whatever its WPO weight: the loss is a plain mean over pairs.
    """
    logps = policy.logps
    weights = None
    if objective.weighting is not None:
        each = [wpo_weights(policy.token_logps[:, k], policy.alignment[:, k], policy.mask[:, k]) for k in (0, 1)]
        weights = each[0] * each[1]
    calibration = {}
    if objective.needs_calibration:
        calibration = {"calibration_logps": logps[:, 2], "ref_calibration_logps": ref_logps[:, 2]}
    result = preference_loss(
        objective, logps[:, 0], logps[:, 1], ref_logps[:, 0], ref_logps[:, 1], weights=weights, **calibration
    )
    metrics = {
        "rewards/chosen": result.chosen_rewards,
        "rewards/rejected": result.rejected_rewards,
        "rewards/accuracies": accuracies(result.margins),
        "rewards/margins": result.margins,
        "logps/chosen": logps[:, 0].detach(),
        "logps/rejected": logps[:, 1].detach(),
        "logps/chosen_displacement": (logps - ref_logps)[:, 0].detach(),
    }
    if objective.alpha > 0:
        metrics["vpo/bonus"] = result.bonus
    if objective.weighting is not None:
        metrics["wpo/weight_mean"] = result.weights
    return Losses(result.loss, torch.ones_like(result.loss), metrics).plus_balancing(policy.balancing)


@torch.no_grad()
def assert_margin_zero(
    model: PreTrainedModel, examples: Sequence[Example], ref_logps: Tensor, settings: TrainingSettings
) -> None:
    """Before the first step policy and reference are one model, so h(y) = 0 on the first batch, up to rounding.

    Raises ValueError otherwise: then the references belong to other weights, tokens or another mode of the model.
    """
    indices = epoch_steps(examples, settings, 0)[0][0]
    batch = collate([examples[i] for i in indices], model.device)
    with eval_mode(model), autocast(model.device, settings.bf16):
        policy = response_logps(model, batch)
    gaps = ((policy.logps - ref_logps[indices]).abs() / policy.lengths).mean(1)
    tolerance = TOLERANCE_BF16 if settings.bf16 else TOLERANCE_FLOAT32
    if not float(gaps.mean()) <= tolerance:  # also refuses NaN
        raise ValueError(
            "before the first step, policy and reference should agree, but they differ by "
            f"{gaps.mean():.3g} nats per token (tolerance {tolerance}), most in row {batch.rows[gaps.argmax()]}. "
            "The cached reference log-probs do not belong to this model; delete the cache, or name the `reference`."
        )
