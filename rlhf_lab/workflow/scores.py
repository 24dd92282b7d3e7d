"""The judge that the settings name, what it is refused for, and the stage in which it scores the candidates."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import pyarrow as pa

from rlhf_lab.common.assets import SHIPPED
from rlhf_lab.common.files import key_of, read_settings
from rlhf_lab.data.contents import Content
from rlhf_lab.data.docstrings import DocstringPair, docstring_pairs
from rlhf_lab.engine.loading import check_weights, load_config, load_model, load_tokenizer, model_source
from rlhf_lab.engine.precision import pick_device
from rlhf_lab.judges.gold import STYLE_WEIGHT, GoldName, Judge, house_judge, style_judge
from rlhf_lab.judges.own import each_response, function_of
from rlhf_lab.judges.pairwise import pairwise_judge, slots_of
from rlhf_lab.judges.reward_model import reward_judge, reward_model
from rlhf_lab.judges.served import server_judge
from rlhf_lab.judges.style import imperative_verbs
from rlhf_lab.workflow.artefacts import Artefact, model_artefact, read_rows, stage, write_rows
from rlhf_lab.workflow.prompts import Row, unpacked
from rlhf_lab.workflow.run import CONTENT, Loop, NamedJudge, by_prompt
from rlhf_lab.workflow.settings import WorkflowSettings, WorkflowTraining

GOLD_NAMES = get_args(GoldName)
SCORES = {"prompt": pa.int32(), "score": pa.float64(), "gold": pa.float64()}


def choose_judge(
    settings: WorkflowSettings,
    training: WorkflowTraining,
    judge: Judge | None = None,
    corpus: Sequence[DocstringPair] | None = None,
) -> NamedJudge:
    """The served judge, known by its model's name wherever it is served, or what `named_judge` finds."""
    if settings.judge != "server":
        return named_judge(settings.judge_name, training.device, judge, corpus)
    if judge is not None:
        raise ValueError("judge='server' asks a server, and would ignore the function given: name it otherwise")
    options = {"answer": settings.judge_answer, "concurrency": settings.concurrency}
    options |= {"timeout": settings.server_timeout, "retries": settings.server_retries}
    options |= {"api_key_variable": settings.judge_api_key_variable}
    options |= {"work": Path(training.output_dir), "progress": None if training.disable_tqdm else "judging"}
    load = partial(server_judge, settings.judge_url, settings.judge_model, **options)
    return NamedJudge(f"server {settings.judge_model}, {settings.judge_answer}", load, relative=True)


def named_judge(
    name: str, device: str = "auto", judge: Judge | None = None, corpus: Sequence[DocstringPair] | None = None
) -> NamedJudge:
    """A gold judge, a model by its folder, "module:function", or the function `judge`, known to the stages as `name`.

    A scalar head makes a model a reward model, a language-model head a pairwise one. A function is taken to score each
    response by itself. corpus: whose summaries say what a command is, for the house style (default: this machine's).
    Raises ValueError if the folder holds no model, or the module no such function.
    """
    if judge is not None:
        if name in GOLD_NAMES:
            raise ValueError("a judge of yours needs a name of its own for the stages' keys: set judge='my-judge 1'")
        return NamedJudge(f"function {name}", lambda: judge)
    if name in GOLD_NAMES:
        return gold_judge(name, corpus)
    folder = Path(model_source(name) if name in SHIPPED else name).expanduser()
    if not folder.exists() and ":" in name:
        fn, source = function_of(name)
        try:  # now: what cannot be called is refused before anything is drawn
            own = each_response(fn)
        except TypeError as error:
            raise ValueError(f"judge={name!r}: {error}") from None
        return NamedJudge(f"function {name} {source}", lambda: own)
    if not (folder / "config.json").is_file():
        was = "; what was gold is content now" if name == "gold" else ""
        raise ValueError(
            f"judge={name!r} is none of {', '.join(GOLD_NAMES)}, no folder with a reward or pairwise preference model, "
            f"and no module:function{was}"
        )
    architectures = read_settings(folder / "config.json", "save the judge again").get("architectures") or [""]
    relative = not architectures[0].endswith("ForSequenceClassification")
    _check_model_judge(folder, relative)
    load = partial(_model_judge, folder, device, relative)
    return NamedJudge(f"model {model_artefact(folder).content}", load, relative)


def gold_judge(name: GoldName, corpus: Sequence[DocstringPair] | None = None) -> NamedJudge:
    """The gold judge of that name; corpus: whose summaries say what a command is (default: this machine's docstrings).

    Raises ValueError if no word of the corpus is a command: the house style could not be told.
    """
    if name == "content":
        return CONTENT
    verbs = imperative_verbs(pair.summary for pair in (docstring_pairs() if corpus is None else corpus))
    if not verbs:
        raise ValueError(f"{name}: no summary of the corpus opens with a command; choose judge and gold 'content'")
    load = partial(style_judge if name == "style" else house_judge, verbs)
    identity = f"{name} {key_of(verbs=sorted(verbs), weight=STYLE_WEIGHT)}"
    return NamedJudge(identity, load, verbs=verbs, needs_references=name == "house")


def scores(
    judge: NamedJudge,
    prompts: Sequence[Content],
    responses: Sequence[Sequence[str]],
    references: Sequence[str] | None,
) -> list[list[float]]:
    """One finite score per response.

    Raises ValueError that names the prompts if the judge returns NaN or infinity, or not one score per response.
    """
    given = judge.load()(prompts, [list(row) for row in responses], references)  # lists of its own, to sort or to cut
    try:
        result = [[float(score) for score in row] for row in given]
    except (TypeError, ValueError):
        raise ValueError(f"the judge ({judge.identity}) did not return a list of numbers for each prompt") from None
    if [len(row) for row in result] != [len(row) for row in responses]:
        raise ValueError(f"the judge ({judge.identity}) did not return one score for each response")
    bad = [i for i, row in enumerate(result) if not all(map(math.isfinite, row))]
    if bad:
        raise ValueError(
            f"the judge ({judge.identity}) gave NaN or infinite scores to {len(bad)} of {len(prompts)} prompts, e.g. "
            f"{bad[:10]}; the first begins {str(prompts[bad[0]])[:80]!r}. Check the judge on these prompts"
        )
    return result


def wins_against(judge: NamedJudge, prompts: Sequence[Content], responses, opponents) -> list[list[float]]:
    """P(response j beats opponent j) of every prompt, by a relative judge asked about the two alone; lists of lists."""
    asked, duels = [], []
    for prompt, ours, theirs in zip(prompts, responses, opponents, strict=True):
        for duel in zip(ours, theirs, strict=True):
            asked.append(prompt)
            duels.append(duel)
    won = iter(scores(judge, asked, duels, None))
    return [[next(won)[0] for _ in row] for row in responses]


def judge_texts(loop: Loop, asked: Sequence[Row], texts: Sequence[Sequence[str]]) -> list[list[dict]]:
    """{"score", "gold"} of every text; gold is None without references. Raises ValueError as `scores` does."""
    score = scores(loop.judge, [row["prompt"] for row in asked], texts, references_of(asked))
    return with_gold(loop, asked, texts, score)


def with_gold(loop: Loop, asked: Sequence[Row], texts, score: Sequence[Sequence[float]]) -> list[list[dict]]:
    """{"score", "gold"} of every text from its score."""
    gold = score if loop.judged_by_gold else gold_scores(loop.gold, asked, texts)
    judged = []
    for scored, known in zip(score, gold, strict=True):
        judged.append([{"score": s, "gold": g} for s, g in zip(scored, known, strict=True)])
    return judged


def gold_scores(
    gold: NamedJudge, asked: Sequence[Row], texts: Sequence[Sequence[str]]
) -> list[list[float]] | list[list[None]]:
    """The gold reward of every text; None where it lacks references."""
    references = references_of(asked)
    if references is None and gold.needs_references:
        return [[None] * len(row) for row in texts]
    return scores(gold, [row["prompt"] for row in asked], texts, references)


def references_of(asked: Sequence[Row]) -> list[str] | None:
    """The humans' responses, or None if a prompt has none."""
    references = [row["reference"] for row in asked]
    return None if None in references else references


def scores_stage(loop: Loop, iteration: int, prompts: Artefact, candidates: Artefact) -> Artefact:
    """The judge's score of every candidate, and the gold reward where there are references; rows as the candidates'."""
    facts = {"prompts": prompts.content, "candidates": candidates.content}
    facts |= {"judge": loop.judge.identity, "gold": loop.gold.identity}

    def make(path: Path) -> None:
        texts = [[c["text"] for c in row] for row in by_prompt(read_rows(candidates))]
        rows = []
        for i, row in enumerate(judge_texts(loop, unpacked(read_rows(prompts)), texts)):
            rows += [{"prompt": i, **judgement} for judgement in row]
        write_rows(path, rows, pa.schema(SCORES))

    return stage(loop.folder(iteration), "scores", facts, make)


def _check_model_judge(folder: Path, relative: bool) -> None:
    """Raises ValueError for what can be told before anything is computed: its tokenizer, its head, cut files."""
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    check_weights(folder)
    if relative:
        slots_of(tokenizer)
    elif config.num_labels != 1:
        raise ValueError(f"judge {str(folder)!r} has {config.num_labels} labels; a reward model has num_labels 1")


def _model_judge(folder: Path, device: str, relative: bool) -> Judge:
    tokenizer, place = load_tokenizer(str(folder)), pick_device(device)
    if relative:
        return pairwise_judge(load_model(folder).to(place), tokenizer)
    return reward_judge(reward_model(folder).to(place), tokenizer)
