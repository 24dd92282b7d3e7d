"""Bradley-Terry reward models: a causal backbone and a scalar head, read at the last token of the response.

    P(y1 > y2 | x) = sigma(r(x, y1) - r(x, y2)),     loss = - log sigma(r(x, y+) - r(x, y-) - margin)

The model is transformers' sequence classification with one label, so that what is saved opens in plain transformers:

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokens = torch.tensor([[*encode_prompt(prompt, tokenizer), *encode_response(response, tokenizer)]])
    reward = model(tokens).logits[0, 0]

A trap lies there: transformers reads the last token that is not `config.pad_token_id`. Where the tokenizer pads with
EOS, it would therefore read the token BEFORE the response's EOS. Here the batch's own mask says where a response ends,
and for such tokenizers the model is saved without pad_token_id: plain transformers then scores one text at a time,
rightly, and refuses a padded batch.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf_lab.common.errors import cause
from rlhf_lab.data.contents import Content
from rlhf_lab.data.examples import Example
from rlhf_lab.engine.batches import Batch
from rlhf_lab.engine.hidden import last_hidden
from rlhf_lab.engine.limits import choose_max_length
from rlhf_lab.engine.loading import load_config, load_model, load_whole, model_source
from rlhf_lab.engine.models import check_responses, disable_dropout
from rlhf_lab.judges.gold import Judge
from rlhf_lab.judges.rows import TOKENS_PER_BATCH, cut_row, encode_responses, values_of_rows
from rlhf_lab.training.defaults import with_defaults
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint, tensor_fingerprint
from rlhf_lab.training.loop import Losses, LossFunction, TrainingResult, train
from rlhf_lab.training.metrics import accuracies
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.settings import TrainingSettings


def reward_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, margins: Tensor | float = 0.0, *, label_smoothing: float = 0.0
) -> Tensor:
    """- (1 - eps) log sigma(d) - eps log sigma(-d) with d = r+ - r- - margin, per pair.

    chosen_rewards, rejected_rewards: [B]. margins: [B] or a number, by how much chosen should win at least (Llama 2,
    arXiv 2307.09288: larger for clearer preferences). label_smoothing: eps, the probability that a label is flipped, in
    [0, .5). Returns [B]. Raises ValueError if eps is out of range or shapes differ.
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 0.5)")
    shapes = {tuple(t.shape) for t in (chosen_rewards, rejected_rewards, margins) if isinstance(t, Tensor)}
    if len(shapes) > 1:
        raise ValueError(f"rewards and margins need one shape, [B]; got {', '.join(map(str, sorted(shapes)))}")
    difference = chosen_rewards - rejected_rewards - margins
    loss = -F.logsigmoid(difference)
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-difference)
    return loss


def reward_scores(model: PreTrainedModel, batch: Batch) -> Tensor:
    """r(x, y) of every response: [B, K], float32 (also under autocast), with gradient; prompts are run once.

    model: from `reward_model`. The same number whatever else is in the batch. Raises ValueError for another model.
    """
    head = scalar_head(model)
    hidden = last_hidden(model, batch)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):  # bf16 would leave rewards three digits
        return hidden.to(dtype) @ head.weight[0].to(dtype)


def scalar_head(model: PreTrainedModel) -> nn.Linear:
    """w of r = w . h. Raises ValueError if the model is no reward model."""
    head = getattr(model, "score", None)
    if not (isinstance(head, nn.Linear) and head.out_features == 1 and head.bias is None):
        raise ValueError(
            f"{type(model).__name__} has no scalar head: give a causal language model, which `reward_model` makes a "
            "reward model, or a sequence-classification model with num_labels 1 and a head named `score` without bias"
        )
    return head


def reward_model(model: PreTrainedModel | str | Path, *, seed: int = 0) -> PreTrainedModel:
    """A reward model: the one that is given (or saved at a path), or a new head on a copy of a causal model's backbone.

    The new head is drawn from N(0, 1 / (D + 1)) by `seed` (Stiennon et al., arXiv 2009.01325). float32.
    Raises ValueError if the model cannot be loaded, or has no sequence-classification form in transformers.
    """
    if isinstance(model, nn.Module):
        return _checked(model) if hasattr(model, "score") else _with_head(model, seed)
    names = load_config(model).architectures or [""]
    if not names[0].endswith("ForSequenceClassification"):
        return _with_head(load_model(model), seed)
    return _checked(load_whole(AutoModelForSequenceClassification, model_source(model)))


def _checked(model: PreTrainedModel) -> PreTrainedModel:
    """The model, if it has a scalar head and plain transformers reads it where we do: see the trap above."""
    scalar_head(model)
    text = model.config.get_text_config()
    if text.pad_token_id is not None and text.pad_token_id in _ends(text):
        raise ValueError(
            f"{type(model).__name__}: config.pad_token_id is its EOS ({text.pad_token_id}), so plain transformers "
            "scores a response at the token before its EOS, and we at the EOS: one model would give two scores. Put "
            "null or another token, as it was trained, for pad_token_id into its config.json"
        )
    return model


def _ends(config) -> list[int]:
    return config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]


def reward_judge(
    model: PreTrainedModel, tokenizer, *, max_length: int | None = None, tokens_per_batch: int = TOKENS_PER_BATCH
) -> Judge:
    """The judge that scores each response by a trained reward model: r(x, y), comparable within a prompt only.

    max_length: tokens of prompt plus response, cut by the rule of `data.truncation`; default: 1024, or the context if
    shorter. A response gets the same score whatever else is asked. Raises ValueError if `model` is no reward model.
    """
    scalar_head(model)
    limit = choose_max_length(model, max_length)

    def judge(
        prompts: Sequence[Content], responses: Sequence[Sequence[str]], references: Sequence[str] | None = None
    ) -> list[list[float]]:
        encoded = encode_responses(prompts, responses, tokenizer)
        rows = [cut_row((prompt, response), tokenizer, limit) for prompt, texts in encoded for response in texts]
        values = iter(values_of_rows(model, rows, reward_scores, tokens_per_batch).tolist())
        return [[next(values) for _ in texts] for _, texts in encoded]

    return judge


def train_reward(
    model: PreTrainedModel | str | Path,
    tokenizer,
    examples: Sequence[Example],
    settings: TrainingSettings,
    *,
    margins: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    eval_examples: Sequence[Example] | None = None,
) -> TrainingResult:
    """Train a Bradley-Terry reward model on examples (chosen, rejected), by the one training loop.

    model: whatever `reward_model` takes; a causal model stays as it is, a reward model is trained in place. margins:
    one per example; the evaluation has none. label_smoothing: see `reward_loss`. Dropout is switched off.
    settings.output_dir receives checkpoints, metrics.jsonl and the reward model with its tokenizer.
    Metrics: `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, as in TRL. Raises ValueError
    for examples or margins of the wrong shape, FloatingPointError if a loss or gradient is not finite.
    """
    check_responses(examples, 2, "examples", "reward modelling")
    check_responses(eval_examples or (), 2, "eval_examples", "reward modelling")
    wanted = _margins(margins, len(examples))
    refuse_model_folder(settings.output_dir, model)
    model = reward_model(model, seed=settings.seed)
    settings = with_defaults(settings, "reward", model)
    disable_dropout(model)
    identity = {
        "task": "reward",
        "objective": f"label_smoothing={label_smoothing} margins={tensor_fingerprint(wanted)}",
        "model": model_fingerprint(model),
        "data": data_fingerprint(examples),
    }
    return train(
        model,
        examples,
        reward_loss_fn(wanted, label_smoothing),
        settings,
        eval_examples=eval_examples,
        eval_loss_fn=reward_loss_fn(torch.zeros(len(eval_examples or ())), 0.0),
        tokenizer=tokenizer,
        identity=identity,
    )


def reward_loss_fn(margins: Tensor, label_smoothing: float) -> LossFunction:
    """The loop's loss function; margins: [N] for all examples."""

    def loss_fn(model: PreTrainedModel, batch: Batch, rows: Tensor) -> Losses:
        chosen, rejected = reward_scores(model, batch).unbind(1)
        loss = reward_loss(chosen, rejected, margins.to(rows.device)[rows], label_smoothing=label_smoothing)
        differences = (chosen - rejected).detach()
        metrics = {
            "rewards/chosen": chosen.detach(),
            "rewards/rejected": rejected.detach(),
            "rewards/accuracies": accuracies(differences),
            "rewards/margins": differences,
        }
        return Losses(loss, torch.ones_like(loss), metrics)

    return loss_fn


def _with_head(causal: PreTrainedModel, seed: int) -> PreTrainedModel:
    config = deepcopy(causal.config)
    config.num_labels = 1
    text = config.get_text_config()
    if text.pad_token_id in _ends(text):  # see the trap above
        text.pad_token_id = None
    try:
        model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ValueError(f"{type(causal).__name__} has no sequence-classification form: {cause(error)}") from error
    model.base_model.load_state_dict(causal.base_model.state_dict())
    head = scalar_head(model)
    draw = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(draw * (head.in_features + 1) ** -0.5)
    return model.to(device=causal.device, dtype=causal.dtype)


def _margins(margins: Sequence[float] | None, count: int) -> Tensor:
    if margins is None:
        return torch.zeros(count)
    values = torch.as_tensor(margins, dtype=torch.float32)
    if values.shape != (count,) or not bool(values.isfinite().all()):
        raise ValueError(f"margins: one finite number for each of {count} examples, got shape {tuple(values.shape)}")
    return values
