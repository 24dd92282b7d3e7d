"""Adapters that are shipped: our own trainer, and TRL's DPOTrainer."""

from dataclasses import fields, replace
from functools import partial
from types import MappingProxyType

from rlhf_lab.common.conversion import convert
from rlhf_lab.data.rows import PreferenceRecord
from rlhf_lab.data.tokens import tokenize_preferences
from rlhf_lab.objective import Objective, preset
from rlhf_lab.training.preference import train_preference
from rlhf_lab.training.settings import TrainingSettings
from rlhf_lab.xray.pairs import Target
from rlhf_lab.xray.trainers import Job, from_trainer


def ours(objective: Objective | None = None) -> Target:
    """Our training loop with an objective whose bonus, if any, is on the pair itself; default DPO."""
    objective = objective or Objective()
    if objective.needs_calibration:
        raise ValueError(
            f"xray ours: calibration {objective.calibration!r} needs a third response; choose calibration chosen or "
            "rejected, or hand the function rlhf_lab.objective:preference_loss to the X-ray"
        )
    knobs = {"label_smoothing": lambda value: ours(replace(objective, label_smoothing=value))}
    return from_trainer("ours", partial(_our_step, objective), objective, knobs=MappingProxyType(knobs))


def _our_step(objective: Objective, job: Job) -> None:
    records = [PreferenceRecord(**row, row=number) for number, row in enumerate(job.rows)]
    examples, _ = tokenize_preferences(records, job.tokenizer, max_length=512)
    settings = TrainingSettings(
        output_dir=str(job.folder),
        learning_rate=job.learning_rate,
        max_steps=job.steps,
        per_device_train_batch_size=job.batch_size,
        gradient_accumulation_steps=job.accumulation,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        max_grad_norm=0.0,
        save_steps=0,
        device="cpu",
        disable_tqdm=True,
    )
    train_preference(job.model, None, examples, objective, settings, reference=job.reference)


def trl(**options: object) -> Target:
    """TRL's DPOTrainer; options: fields of its DPOConfig. Raises ValueError if TRL is not installed."""
    try:
        from trl import DPOConfig
    except ImportError as error:
        raise ValueError(f"xray trl: TRL cannot be imported ({error}); pip install trl") from error
    known = {field.name for field in fields(DPOConfig)}
    if unknown := set(options) - known:
        raise ValueError(f"xray trl: DPOConfig has no {', '.join(sorted(unknown))}")
    declared = {"beta": float(options.get("beta", DPOConfig.beta))}
    declared["label_smoothing"] = float(options.get("label_smoothing", DPOConfig.label_smoothing))
    knobs = {"label_smoothing": lambda value: trl(**options | {"label_smoothing": value})}
    return from_trainer(
        "trl", partial(_trl_step, options), declared=MappingProxyType(declared), knobs=MappingProxyType(knobs)
    )


def _trl_step(options: dict[str, object], job: Job) -> None:
    import datasets
    from trl import DPOConfig, DPOTrainer

    arguments = {
        "output_dir": str(job.folder),
        "per_device_train_batch_size": job.batch_size,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    data = datasets.Dataset.from_list(list(job.rows))
    config = DPOConfig(**(arguments | options))
    DPOTrainer(job.model, job.reference, config, train_dataset=data, processing_class=job.tokenizer).train()


def target_named(name: str, settings: dict[str, str]) -> Target | None:
    """`ours` or `trl` with settings as text; None for another name. Raises ValueError for unknown settings."""
    if name == "trl":
        return trl(**{key: as_value(text) for key, text in settings.items()})
    if name != "ours":
        return None
    hints = {field.name: field.type for field in fields(Objective)}
    changes = {key: text for key, text in settings.items() if key != "objective"}
    if unknown := set(changes) - set(hints):
        raise ValueError(f"xray ours: an objective has no {', '.join(sorted(unknown))}; it has {', '.join(hints)}")
    converted = {key: convert(text, hints[key], key) for key, text in changes.items()}
    return ours(preset(settings.get("objective", "dpo"), **converted))


def as_value(text: str) -> object:
    """A number, true, false, none, or the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
