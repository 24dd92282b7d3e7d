"""`train_online`: ask the policy, judge, pair, train, measure, and ask the better policy again.

    prompts -> candidates -> scores -> pairs (-> calibration) -> policy -> evaluation          once an iteration

Every stage is an immutable artefact in output_dir (`artefacts`). Killed anywhere, the same call goes on from the last
complete stage, inside training from its checkpoint, and reaches the same bits on the CPU.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoConfig

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.common.files import check_writable
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.engine.loading import load_tokenizer
from rlhf_lab.judges.gold import Judge
from rlhf_lab.objective import Objective
from rlhf_lab.online.artefacts import Artefact, clear_unfinished, model_artefact, naming
from rlhf_lab.online.evaluation import evaluation_stage
from rlhf_lab.online.judging import loop_judge
from rlhf_lab.online.policy import Data, policy_stage
from rlhf_lab.online.prompts import Row, block, prompt_pools
from rlhf_lab.online.report import progress_line
from rlhf_lab.online.results import Stages, collect, write_results
from rlhf_lab.online.settings import OnlineSettings, OnlineTraining
from rlhf_lab.online.stages import (
    Loop,
    calibration_stage,
    candidates_stage,
    pairs_stage,
    prompts_stage,
    scores_stage,
)


def train_online(
    settings: OnlineSettings,
    objective: Objective,
    training: OnlineTraining,
    *,
    corpus: Sequence[DocstringPair] | None = None,
    judge: Judge | None = None,
) -> dict:
    """Run the loop, or go on with it; returns what metrics.json holds.

    corpus: (description, summary) pairs in place of this machine's docstrings. judge: a function in place of the one
    that settings.judge names, which is then its name in the stages' keys: give a changed function a new name.
    output_dir receives iteration-N/STAGE-KEY, metrics.json, report.md and figure.png, after every iteration.
    Raises ValueError, OSError or FloatingPointError that name the stage; what was computed before is kept.
    """
    check_writable(Path(training.output_dir))
    clear_unfinished(Path(training.output_dir))
    loop, context = _prepare(settings, objective, training, judge)
    pool, held_out = prompt_pools(settings, loop.tokenizer, training.seed, context, corpus)
    if loop.judge.is_gold and pool[0]["reference"] is None:
        raise ValueError(f"judge='gold' needs a `reference` in every row of {settings.prompts_file}")
    for history in iterations(loop, pool, held_out):
        results = collect(loop, history)
        with naming(f"iteration-{len(history) - 1}, report"):
            write_results(results, Path(training.output_dir))
        kept = sum(artefact.read_back for artefact in history[-1].values())
        print(progress_line(results["iterations"][-1]) + f" ({kept} of {len(history[-1])} stages as made before)")
    return results


def iterations(loop: Loop, pool: Sequence[Row], held_out: Sequence[Row]) -> Iterator[list[Stages]]:
    """The finished stages of pi_0 and of all iterations so far, after each iteration; nothing is reported.

    pool: prompts to learn from, taken in this order; held_out: those that every iterate is measured on.
    """
    asked = prompts_stage(loop, 0, held_out)
    baseline = {"prompts": asked, "policy": loop.sft, "evaluation": evaluation_stage(loop, 0, asked, loop.sft)}
    history: list[Stages] = [baseline]
    for iteration in range(1, loop.settings.iterations + 1):
        prompts = prompts_stage(loop, iteration, block(pool, iteration, loop.settings.prompts))
        history.append(run_iteration(loop, iteration, prompts, history))
        yield history


def run_iteration(loop: Loop, iteration: int, prompts: Artefact, history: Sequence[Stages]) -> Stages:
    """The stages of one iteration, by name; history[0] holds the held-out prompts, pi_0 and its evaluation."""
    settings = loop.settings
    policies = [stages["policy"] for stages in history]
    current, previous = policies[-1], policies[max(0, len(policies) - 2)]
    reference = loop.sft if settings.reference == "fixed" else current
    other = {"reference": reference, "previous": previous}.get(settings.opponent, current)

    stages: Stages = {"prompts": prompts}
    stages["candidates"] = candidates_stage(loop, iteration, prompts, current, other)
    stages["scores"] = scores_stage(loop, iteration, prompts, stages["candidates"])
    stages["pairs"] = pairs_stage(loop, iteration, stages["candidates"], stages["scores"])
    if loop.objective.needs_calibration:
        # SELM's pi_cal: the previous iterate, seen from the policy that is about to be trained, is the current one.
        source = reference if loop.objective.calibration == "reference" else current
        stages["calibration"] = calibration_stage(loop, iteration, prompts, source)

    data = [Data.of(each) for each in [*history[1:], stages]]
    start = current if settings.warm_start else loop.sft
    stages["policy"] = policy_stage(loop, iteration, data if settings.data == "all" else data[-1:], start, reference)
    asked, baseline = history[0]["prompts"], history[0]["evaluation"]
    stages["evaluation"] = evaluation_stage(loop, iteration, asked, stages["policy"], baseline)
    return stages


def _prepare(settings: OnlineSettings, objective: Objective, training: OnlineTraining, judge) -> tuple[Loop, int]:
    """The loop's constants, and how many tokens a prompt may have."""
    folder = Path(settings.model).expanduser() if settings.model else small_model_path("small")
    if not (folder / "config.json").is_file():
        raise ValueError(f"model={str(folder)!r} holds no model (no config.json): give a folder of save_pretrained")
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no eos_token: nothing would say where a response ends")
    context = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None) or 2**20
    if context <= settings.max_new_tokens:
        raise ValueError(f"max_new_tokens={settings.max_new_tokens} leaves no room for a prompt in {context} positions")
    named = loop_judge(settings, training, judge)
    loop = Loop(settings, objective, training, tokenizer, model_artefact(folder), named)
    return loop, context - settings.max_new_tokens
