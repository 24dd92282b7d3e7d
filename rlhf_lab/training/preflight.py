"""What would stop a run after hours is looked for before its first minute."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from rlhf_lab.data.examples import Example
from rlhf_lab.engine.limits import check_examples
from rlhf_lab.engine.models import set_gradient_checkpointing
from rlhf_lab.engine.precision import check_master_weights, pick_device
from rlhf_lab.training.metrics import check_trackers
from rlhf_lab.training.optim import make_optimizers
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.schedule import evaluation_batches, total_steps
from rlhf_lab.training.settings import TrainingSettings


def check_run(
    model: nn.Module, examples: Sequence[Example], settings: TrainingSettings, eval_examples: Sequence[Example] | None
) -> None:
    """Raises ValueError for a model, examples, evaluation examples or settings that training would fail on.

    That is: the folder of the model itself, a device or tracker that is not there, half-precision weights, an optimizer
    or recomputation that the model does not allow, token ids or lengths that it cannot take, an example that alone
    exceeds tokens_per_batch. The folder's owner is `run_folder`'s business.
    """
    if not examples:
        raise ValueError("train: there are no examples to train on")
    if settings.learning_rate is None or (settings.num_train_epochs is None and settings.max_steps <= 0):
        raise ValueError("train: give learning_rate and num_train_epochs; only the tasks have defaults for them")
    refuse_model_folder(settings.output_dir, model)
    pick_device(settings.device)
    check_trackers(settings)
    check_master_weights(model)
    make_optimizers(model, settings)
    if settings.gradient_checkpointing:
        set_gradient_checkpointing(model, True)
        set_gradient_checkpointing(model, False)
    if isinstance(model, PreTrainedModel):
        check_examples(model, [*examples, *(eval_examples or ())])
    total_steps(examples, settings)
    evaluation_batches(eval_examples or (), settings)
