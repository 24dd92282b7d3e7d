"""Small settings for the tests of the workflow, on the toy language of `tests.toy`."""

from rlhf_lab.workflow import results
from rlhf_lab.workflow.loop import run_workflow
from rlhf_lab.workflow.presets import Plan, workflow_preset
from tests.toy import toy_corpus

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


def run(out, sft: str, preset: str = "rlhf-workflow", function=None, **changes) -> dict:
    """The results of `toy_run`; function: the judge, in place of the one that `judge` names."""
    return run_workflow(*toy_run(out, sft, preset, **changes), corpus=toy_corpus(), judge=function)


def draw_no_figure(patch) -> None:
    """patch: a pytest.MonkeyPatch, which gives the figure back."""
    patch.setattr(results, "write_figure", lambda numbers, path: "a figure that is not drawn")
