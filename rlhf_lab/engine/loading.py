"""From a path, a hub id or the name of a shipped model to a model and its tokenizer, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from rlhf_lab.common.assets import SHIPPED, small_model_path
from rlhf_lab.common.errors import cause
from rlhf_lab.common.files import read_settings
from rlhf_lab.common.words import counted

# Heads of other tasks: what a causal model would lack there is drawn at random by transformers, with a warning only.
OTHER_TASKS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "ForMaskedLM")
# What transformers raises for files that are not there, not whole, of an unknown kind, or need a package.
LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError),
    *(TypeError, AttributeError),  # from a list where a mapping is meant, say
)
LFS_POINTER = b"version https://git-lfs"


def model_source(name: str | Path) -> str:
    """`name`, or the folder of the shipped model that it names ("small", "tiny") where no folder is called so."""
    if str(name) in SHIPPED and not Path(name).exists():
        return str(small_model_path(str(name)))
    return str(name)


def load_model(model: PreTrainedModel | str | Path) -> PreTrainedModel:
    """The model itself, or the causal language model at a path, hub id or shipped name, with float32 master weights.

    Raises ValueError if it cannot be loaded, if its files hold another kind of model or lack weights that this kind
    has (transformers would draw them at random), or if an earlier position sees a later token.
    """
    if isinstance(model, nn.Module):
        return model
    source = model_source(model)
    refuse_other_tasks(source)
    loaded = load_whole(AutoModelForCausalLM, source)
    _check_causal(loaded, source)
    return loaded


def load_tokenizer(path: str | Path):
    """The tokenizer beside the model; raises ValueError that names the path."""
    _refuse_broken_configs(model_source(path), "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
    try:
        return AutoTokenizer.from_pretrained(model_source(path))
    except LOADING_ERRORS as error:
        raise ValueError(f"cannot load a tokenizer from {str(path)!r}: {cause(error)}") from error


def load_config(source: str | Path):
    """The model's configuration; raises ValueError that names the path."""
    _refuse_broken_configs(model_source(source), "config.json")
    try:
        return AutoConfig.from_pretrained(model_source(source))
    except LOADING_ERRORS as error:
        raise ValueError(f"cannot load a model from {str(source)!r}: {cause(error)}") from error


def load_generation_config(source: str | Path) -> GenerationConfig:
    """How the model at `source` generates, as it says itself once loaded; raises ValueError that names the path."""
    try:
        return GenerationConfig.from_pretrained(model_source(source))
    except OSError:  # it has no such file: its configuration says so then
        return GenerationConfig.from_model_config(load_config(source))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers inside, where they would mix with ours; downloads from the hub keep theirs."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    hub_shows = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    try:
        if hub_shows:
            enable_progress_bars()
        yield
    finally:
        logging.enable_progress_bar()
        if not hub_shows:
            disable_progress_bars()


def refuse_other_tasks(source: str) -> None:
    """Raises ValueError if the files at `source` hold a model with the head of another task."""
    named = (load_config(source).architectures or [""])[0]
    if any(task in named for task in OTHER_TASKS):
        raise ValueError(
            f"{source!r} holds a {named}, not a causal language model: its language-model head is missing and would be "
            "drawn at random. Give the causal model that it was made from."
        )


def load_whole(kind: type, source: str) -> PreTrainedModel:
    """kind.from_pretrained(source) in float32. Raises ValueError if a weight is missing, of another shape, or cut."""
    _refuse_broken_configs(source, "config.json", "generation_config.json")
    _refuse_pointers(source)
    try:
        with quiet_transformers():
            model, found = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except LOADING_ERRORS as error:
        raise ValueError(f"cannot load a model from {source!r}: {cause(error)}") from error
    absent = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if absent:
        raise ValueError(
            f"{source!r} lacks {counted(len(absent), 'weight')} of a {type(model).__name__} "
            f"({', '.join(absent[:3])}): they would be drawn at random. Is the checkpoint whole, and of this kind of "
            "model?"
        )
    return model


def _refuse_broken_configs(source: str, *names: str) -> None:
    """transformers goes on without a generation config that it cannot read, and a model then ends otherwise."""
    for name in names:
        if (file := Path(source) / name).is_file():
            read_settings(file, "take it from the model's source again")


def check_weights(folder: str | Path) -> None:
    """Raises ValueError if the folder has no weights, or a file of them is cut or a pointer; nothing is loaded."""
    _refuse_pointers(str(folder))
    if not any(Path(folder).glob("*.safetensors")) and not any(Path(folder).glob("*.bin")):
        raise ValueError(f"{folder} holds no weights (*.safetensors): save the model there again")
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not whole ({cause(error)}): save the model there again") from error


def _refuse_pointers(source: str) -> None:
    weights = [*Path(source).glob("*.safetensors"), *Path(source).glob("*.bin")] if Path(source).is_dir() else []
    for file in sorted(weights):
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")


@torch.no_grad()
def _check_causal(model: PreTrainedModel, source: str) -> None:
    """Change the last of four tokens: the logits before it may not move."""
    last = model.get_input_embeddings().num_embeddings - 1
    ids = torch.tensor([[0, 0, 0, 0], [0, 0, 0, last]], device=model.device)
    was_training = model.training
    model.eval()
    try:
        before = model(input_ids=ids, use_cache=False).logits[:, :3].float()
    finally:
        model.train(was_training)
    # NaN passes here: what is not a number is found where it is used
    if bool((before[0] - before[1]).abs().max() > 1e-5 * (1 + before.abs().max())):
        raise ValueError(
            f"{source!r} ({type(model).__name__}) is not causal: a later token changes what is predicted before it. "
            "Encoders cannot be trained on responses; give a decoder."
        )
