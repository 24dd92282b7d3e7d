"""Small settings for the tests of the workflow, on the toy language of `tests.toy`."""

from rlhf_lab.workflow.presets import Plan, workflow_preset

SMALL = {
    "judge": "content",
    "gold": "content",
    "baseline_temperatures": (),
    "iterations": 2,
    "prompts": 8,
    "candidates": 4,
    "max_new_tokens": 6,
    "eval_prompts": 6,
    "eval_samples": 2,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "save_steps": 2,
    "device": "cpu",
    "disable_tqdm": True,
}


def toy_run(out, model: str, preset: str = "rlhf-workflow", **changes) -> Plan:
    """A run of a second or so; `changes` are any settings."""
    if preset in ("xpo", "vpo-online"):
        changes = {"candidates": 2} | changes
    return workflow_preset(preset, **(SMALL | {"output_dir": str(out), "model_name_or_path": model} | changes))
