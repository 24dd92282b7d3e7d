"""How well can a judge, trained on comparisons, predict comparisons about OTHER prompts?

Cross-validation by prompt: every comparison is judged once per seed, by a judge that saw no comparison of its prompt.
All intervals are over prompts, so that a comparison counts once however many seeds judge it.
Left in --output_dir: report.json, report.png and each fold's verdicts, which are read back if the command runs again.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from rlhf_lab.bradley_terry import preference_probability
from rlhf_lab.common.assets import small_model_path
from rlhf_lab.common.errors import interruptible
from rlhf_lab.common.files import Clock, PathText, expanded, key_of, write_atomically
from rlhf_lab.common.folders import owned
from rlhf_lab.common.plots import save_png
from rlhf_lab.data.examples import Example
from rlhf_lab.data.records import load_preferences
from rlhf_lab.data.tokens import tokenize_preferences
from rlhf_lab.data.truncation import LongPrompts
from rlhf_lab.engine.limits import choose_max_length
from rlhf_lab.engine.loading import load_model, load_tokenizer
from rlhf_lab.engine.precision import bf16_speed, pick_device
from rlhf_lab.judges.pairwise import train_pairwise, win_probabilities
from rlhf_lab.judges.report import Verdicts, judge_report, wins
from rlhf_lab.judges.report_figure import draw_report
from rlhf_lab.judges.reward_model import reward_model, reward_scores, train_reward
from rlhf_lab.judges.rows import values_of_rows
from rlhf_lab.training.fingerprints import data_fingerprint, model_fingerprint
from rlhf_lab.training.run_folder import refuse_model_folder
from rlhf_lab.training.settings import TrainingSettings


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge learns from which comparisons, and how.

    The text under each field is its help on the command line. Raises ValueError that names the setting.
    """

    data: PathText
    """comparisons: JSONL (or .jsonl.gz), CSV or Parquet"""
    output_dir: PathText = "runs/judge"
    """report.json, report.png and the verdicts of each fold go here"""
    model_name_or_path: PathText | None = None
    """folder or hub id of a causal language model with its tokenizer; none: the shipped small one"""
    kind: Literal["bradley-terry", "pairwise"] = "bradley-terry"
    """a reward model that scores each response, or a pairwise judge that reads both"""
    columns: dict[str, str | None] | str | None = None
    """where the standard columns come from, chosen=better,rejected=worse, or the id of a data set of the same
    layout"""
    drop_invalid: bool = False
    """leave out rows that cannot be used, and report them, instead of refusing the file"""
    folds: int = 5
    """parts of the comparisons, each held out once; the comparisons of a prompt are never divided"""
    test_folds: int | None = None
    """judge only the first so many folds, for a quick look; none: all"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the folds, the new head and the order of training; every seed repeats the whole cross-validation"""
    max_length: int | None = None
    """tokens of the prompt plus one response (pairwise: both); none: 1024, or the model's context if that is
    shorter"""
    max_prompt_length: int | None = None
    """tokens of a prompt; longer ones keep their end"""
    max_response_length: int | None = None
    """tokens of a response; longer ones keep their beginning"""
    long_prompts: LongPrompts | None = None
    """refuse the file, truncate or drop prompts that are longer than max_prompt_length, or that fill max_length
    alone; none: truncate if max_prompt_length is given, else refuse"""
    learning_rate: float = 1e-4
    """learning rate of each fold's training"""
    epochs: float = 1.0
    """passes over each fold's training comparisons"""
    batch_size: int = 16
    """comparisons per optimizer step"""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"--folds {self.folds}: two or more, one to judge and the rest to learn from")
        if self.test_folds is not None and not 1 <= self.test_folds <= self.folds:
            raise ValueError(f"--test_folds {self.test_folds}: must be in 1..{self.folds}, the number of folds")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds {self.seeds}: one or more different numbers")
        for seed in self.seeds:
            self.training("", seed)  # raises now what it would raise in the middle

    def training(self, folder: str, seed: int) -> TrainingSettings:
        """The settings by which a fold's judge learns in `folder`."""
        return TrainingSettings(
            output_dir=folder,
            learning_rate=self.learning_rate,
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch_size,
            bf16=bf16_speed(pick_device()).startswith("native"),
            seed=seed,
            save_steps=0,
        )


class Comparisons(NamedTuple):
    """N tokenised comparisons, each one's prompt, characters of (chosen, rejected) [N, 2], and what was cut."""

    examples: list[Example]
    prompts: list[str]
    lengths: np.ndarray
    cuts: dict[str, int | dict[str, int]]


def judge(settings: JudgeSettings) -> dict:
    """Run the cross-validation, write report.json and report.png to output_dir, and return what the JSON holds."""
    kept = "the verdicts of finished folds are kept, and the same command goes on from there"
    folder = Path(expanded(settings.output_dir))
    refuse_model_folder(folder, settings.model_name_or_path)
    if (folder / "report.json").exists() and not (folder / "folds").is_dir():
        raise ValueError(f"--output_dir {folder} has a report.json that no judge wrote; choose another --output_dir")
    with owned(folder) as out, interruptible(lambda: kept):
        return _judge(settings, out)


def _judge(settings: JudgeSettings, out: Path) -> dict:
    clock = Clock()
    folder = settings.model_name_or_path or str(small_model_path("small"))
    model = load_model(folder) if settings.kind == "pairwise" else reward_model(folder)
    tokenizer = load_tokenizer(folder)
    data = read_comparisons(settings, tokenizer, choose_max_length(model, settings.max_length))
    facts = {name: getattr(settings, name) for name in ("kind", "folds", "learning_rate", "epochs", "batch_size")}
    facts |= {"model": model_fingerprint(model), "data": data_fingerprint(data.examples), "prompts": data.prompts}
    del model
    judged, said, by_seed = cross_validate(settings, folder, tokenizer, data, facts, clock)
    scores = said[:, 1:] if settings.kind == "bradley-terry" else None
    groups = [data.prompts[i] for i in judged]
    verdicts = Verdicts(said[:, 0], data.lengths[judged], scores=scores, groups=groups, comparisons=judged)
    result = {
        "settings": asdict(settings)
        | {"data": Path(settings.data).name, "output_dir": "", "model_name_or_path": Path(folder).name},
        "cuts": data.cuts,
        "report": judge_report(verdicts),
        "accuracy_by_seed": by_seed,
        "coin": 0.5,
        "seconds": sum(clock.seconds.values()),
    }
    write_atomically(out / "report.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    save_png(draw_report({settings.kind: result["report"]}), out / "report.png")
    return result


def cross_validate(
    settings: JudgeSettings, folder: str, tokenizer, data: Comparisons, facts: dict, clock: Clock
) -> tuple[list[int], np.ndarray, dict[int, float]]:
    """(which comparison, what was said about it [R, 3]) of every seed and fold, and each seed's accuracy.

    facts: what decides the verdicts besides seed and fold; a fold that was judged under the same facts is read back.
    """
    judged, values, by_seed = [], [], {}
    for seed in settings.seeds:
        begin = len(values)
        for fold, (train, test) in enumerate(split_by_group(data.prompts, settings.folds, seed)[: settings.test_folds]):
            parts = {"train": [data.examples[i] for i in train], "test": [data.examples[i] for i in test]}
            path = Path(expanded(settings.output_dir)) / "folds" / f"seed-{seed}-fold-{fold}.json"
            key = key_of(**facts, max_length=settings.max_length, seed=seed, fold=fold)
            make = partial(_fold, settings, folder, tokenizer, seed, **parts)
            values += clock.stored(f"seed {seed}, fold {fold}", path, key, make)
            judged += test
        by_seed[seed] = float(wins(np.array(values[begin:])[:, 0] - 0.5).mean())
    return judged, np.array(values), by_seed


def read_comparisons(settings: JudgeSettings, tokenizer, max_length: int) -> Comparisons:
    """The data, checked, tokenised and cut; what was left out or cut is said on the screen."""
    records, found = load_preferences(settings.data, columns=settings.columns, drop_invalid=settings.drop_invalid)
    examples, counts = tokenize_preferences(
        records,
        tokenizer,
        max_length=max_length,
        max_prompt_length=settings.max_prompt_length,
        max_response_length=settings.max_response_length,
        long_prompts=settings.long_prompts,
        drop_invalid=settings.drop_invalid,
    )
    print(f"{found}\n{counts}")
    of_row = {record.row: record for record in records}
    kept = [of_row[example.row] for example in examples]
    lengths = np.array([[len(_plain(r.chosen)), len(_plain(r.rejected))] for r in kept])
    return Comparisons(examples, [repr(record.prompt) for record in kept], lengths, counts.facts)


def split_by_group(groups: Sequence[str], folds: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """(training, test) indices of each fold; all rows of a group are in one fold, groups are dealt out by `seed`.

    Raises ValueError if there are fewer groups than folds.
    """
    names = sorted(set(groups))
    if len(names) < folds:
        raise ValueError(f"{folds} folds need as many different prompts, but there are {len(names)}")
    random.Random(seed).shuffle(names)
    fold_of = {name: position % folds for position, name in enumerate(names)}
    places = [fold_of[group] for group in groups]
    parts = []
    for fold in range(folds):
        inside = [i for i, place in enumerate(places) if place == fold]
        parts.append(([i for i, place in enumerate(places) if place != fold], inside))
    return parts


def _fold(
    settings: JudgeSettings, folder: str, tokenizer, seed: int, train: list[Example], test: list[Example]
) -> list[list[float]]:
    """Per test comparison: P(chosen wins), and the scores of both (pairwise: the two probabilities again)."""
    with tempfile.TemporaryDirectory(prefix="judge-") as scratch:
        training = settings.training(scratch, seed)
        if settings.kind == "pairwise":
            options = {"max_length": settings.max_length}
            model = train_pairwise(folder, tokenizer, train, training, **options).model
            matrices = win_probabilities(model, tokenizer, test, **options)
            return [[float(m[0, 1]), float(m[0, 1]), float(m[1, 0])] for m in matrices]
        model = train_reward(folder, tokenizer, train, training).model
    rows = [(example.prompt, response) for example in test for response in example.responses]
    scores = values_of_rows(model, rows, reward_scores).unflatten(0, (-1, 2)).double()
    probabilities = preference_probability(scores[:, 0], scores[:, 1])
    return torch.cat([probabilities[:, None], scores], 1).tolist()


def _plain(content) -> str:
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)
