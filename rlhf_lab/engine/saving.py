"""A model and its tokenizer as files that whoever may read the folder can read."""

from pathlib import Path

from transformers import PreTrainedModel

from rlhf_lab.common.files import obey_umask
from rlhf_lab.engine.loading import quiet_transformers


def save_model(model: PreTrainedModel, tokenizer, folder: str | Path) -> None:
    """save_pretrained of both (tokenizer may be None) into `folder`, without bars of its own, modes as by the umask."""
    with quiet_transformers():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    obey_umask(folder)
