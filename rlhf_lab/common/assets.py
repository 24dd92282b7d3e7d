"""Where the small models and the notebooks lie: at the top level of a checkout, or inside an installed wheel.

    small_models/NAME   notebooks/      <- checkout (editable install)
    rlhf_lab/_assets/small_models/NAME  rlhf_lab/_assets/notebooks      <- wheel (pyproject.toml, force-include)

RLHF_LAB_SMALL_MODELS=FOLDER looks for the small models in FOLDER instead: to try a model that is still in training.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SMALL_MODELS_VARIABLE = "RLHF_LAB_SMALL_MODELS"
# Names by which every command and function finds the shipped models, when no folder is called so.
SHIPPED = ("small", "tiny")


def small_model_path(name: str = "small") -> Path:
    """The folder of a shipped model ("small" or "tiny"), ready for `AutoModelForCausalLM.from_pretrained`.

    Raises FileNotFoundError that names the places searched and the models found there.
    """
    chosen = os.environ.get(SMALL_MODELS_VARIABLE)
    folders = [Path(chosen).expanduser()] if chosen else _candidates("small_models")
    for folder in folders:
        if (folder / name / "config.json").is_file():
            return folder / name
    found = sorted({config.parent.name for folder in folders for config in folder.glob("*/config.json")})
    raise FileNotFoundError(
        f"no small model {name!r} (a folder with a config.json) in {' or '.join(map(str, folders))}; "
        f"found there: {', '.join(found) or 'none'}. "
        + (
            f"{SMALL_MODELS_VARIABLE} is set: unset it to use the shipped models."
            if chosen
            else "The shipped models are part of the repository and of its wheel: install again from a full checkout."
        )
    )


def notebooks_path() -> Path:
    """The folder of the published notebooks, NN_name.ipynb; their masters are in its subfolder `source`.

    Raises FileNotFoundError that names the places searched.
    """
    folders = _candidates("notebooks")
    for folder in folders:
        if any(folder.glob("*.ipynb")) or (folder / "source").is_dir():
            return folder
    raise FileNotFoundError(
        f"no notebooks in {' or '.join(map(str, folders))}: they are part of the repository and of its wheel; "
        "install again from a full checkout"
    )


def _candidates(name: str) -> list[Path]:
    return [PACKAGE / "_assets" / name, PACKAGE.parent / name]
