"""`run_workflow`: ask the policy, judge, pair, train, measure, and ask the better policy again.

    prompts -> candidates -> scores -> pairs (-> calibration) -> policy -> evaluation          once an iteration

One iteration with several objectives compares methods on the same pairs (`rlhf-lab summarize`); several iterations with
one objective are the online loop (`rlhf-lab train online`). Every stage is an immutable artefact in output_dir
(`artefacts`), so objectives share what they have in common. Killed anywhere, the same call goes on from the last
complete stage, inside sampling and training from what they had done, and reaches the same bits on the CPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_lab.common.errors import interruptible
from rlhf_lab.common.folders import owned
from rlhf_lab.data.docstrings import DocstringPair, docstring_pairs
from rlhf_lab.engine.loading import load_config, load_tokenizer, model_source
from rlhf_lab.judges.gold import Judge
from rlhf_lab.objective import Objective
from rlhf_lab.training.run_folder import RUN_FILE, refuse_model_folder
from rlhf_lab.workflow.artefacts import MANIFEST, Artefact, clear_unfinished, model_artefact, naming
from rlhf_lab.workflow.baselines import tempered_stage
from rlhf_lab.workflow.candidates import calibration_stage, candidates_stage
from rlhf_lab.workflow.evaluation import evaluation_stage
from rlhf_lab.workflow.pairs import pairs_stage
from rlhf_lab.workflow.policy import IterationData, policy_stage
from rlhf_lab.workflow.presets import Plan, own_training
from rlhf_lab.workflow.prompts import Row, block, prompt_pools, prompts_stage
from rlhf_lab.workflow.report import progress_line
from rlhf_lab.workflow.results import Stages, collect_results, write_results
from rlhf_lab.workflow.run import Loop
from rlhf_lab.workflow.scores import choose_judge, gold_judge, scores_stage
from rlhf_lab.workflow.settings import WorkflowSettings, WorkflowTraining

WAY_ON = "the same command goes on behind the last one, inside sampling and training from what they had done"
RESULTS = ("results.json", "report.md", "figure.png", "pairs.jsonl")


def run_workflow(
    settings: WorkflowSettings,
    objectives: Mapping[str, Objective],
    training: WorkflowTraining,
    *,
    corpus: Sequence[DocstringPair] | None = None,
    judge: Judge | None = None,
) -> dict:
    """Run the workflow, or go on with it; returns what results.json holds.

    objectives: by name; each learns from pairs of its own policies, which in the first iteration are the same.
    corpus: (description, summary) pairs in place of this machine's docstrings. judge: a function in place of the one
    that settings.judge names, which is then its name in the stages' keys: give a changed function a new name.
    output_dir receives iteration-N/STAGE-KEY, results.json, report.md, figure.png and pairs.jsonl, after every policy.
    Raises ValueError, OSError or FloatingPointError that name the stage; what was computed before is kept. One process
    at a time writes in output_dir.
    """
    out = Path(training.output_dir)
    refuse_model_folder(out, settings.model_name_or_path, settings.judge if settings.judge != "server" else None)
    check_ours(out)
    with owned(out, "--output_dir"), interruptible(lambda: f"finished stages are kept: {WAY_ON}"):
        if any(out.glob(f"iteration-0/prompts-*/{MANIFEST}")):  # else what is called unfinished is a stranger's
            clear_unfinished(out)
        return _run(Plan(settings, dict(objectives), training), corpus, judge)


def _run(plan: Plan, corpus: Sequence[DocstringPair] | None, judge: Judge | None) -> dict:
    settings, objectives, training = plan
    if settings.prompts_file is None and corpus is None:
        corpus = docstring_pairs()
    first = open_loop(settings, next(iter(objectives.values())), training, judge, corpus)
    # The model's files, the judge's and the tokenizer are read once, whatever the number of objectives.
    loops = {}
    for name, objective in objectives.items():
        loops[name] = replace(first, objective=objective, training=own_training(name, training))
    pool, held_out = prompt_pools(settings, first.tokenizer, training.seed, room_for_prompts(first), corpus)
    if first.judge.needs_references and pool[0]["reference"] is None:
        raise ValueError(f"judge={settings.judge_name!r} needs a `reference` in every row of {settings.prompts_file}")
    if settings.gold is not None and first.gold.needs_references and pool[0]["reference"] is None:
        raise ValueError(f"gold={settings.gold!r} needs a `reference` in every row of {settings.prompts_file}")
    histories: dict[str, list[Stages]] = {}
    for name, loop in loops.items():
        for history in iterations(loop, pool, held_out):
            histories[name] = history
            results = collect_results(loops, histories, corpus if settings.prompts_file is None else None)
            with naming(f"{history[-1]['policy'].path.parent.name}, report"):
                write_results(results, histories, Path(training.output_dir))
            kept = sum(artefact.read_back for artefact in history[-1].values())
            stages = f"{kept} of {len(history[-1])} stages as made before"
            print(f"{progress_line(results['policies'][-1], first.judged_by_gold)} ({stages})")
    return results


def check_ours(out: Path) -> None:
    """Raises ValueError if `out` has files of the results' names that no run of the workflow wrote."""
    if (out / RUN_FILE).exists():
        raise ValueError(f"--output_dir {out} holds a training run ({RUN_FILE}); choose another --output_dir")
    taken = [name for name in RESULTS if (out / name).exists()]
    if taken and not any(out.glob(f"iteration-0/prompts-*/{MANIFEST}")):
        raise ValueError(
            f"--output_dir {out} has {', '.join(taken)}, which no run of the workflow wrote: they would be replaced. "
            "Choose another --output_dir, or move them away"
        )


def iterations(loop: Loop, pool: Sequence[Row], held_out: Sequence[Row]) -> Iterator[list[Stages]]:
    """The finished stages of pi_0 and of all iterations so far, after each iteration; nothing is reported.

    pool: prompts to learn from, taken in this order; held_out: those that every policy is measured on.
    """
    asked = prompts_stage(loop, 0, held_out)
    baseline = {"prompts": asked, "policy": loop.sft, "evaluation": evaluation_stage(loop, 0, asked, loop.sft)}
    if loop.settings.baseline_temperatures:
        baseline["tempered"] = tempered_stage(loop, asked, baseline["evaluation"])
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

    data = [IterationData.of(each) for each in [*history[1:], stages]]
    start = current if settings.warm_start else loop.sft
    stages["policy"] = policy_stage(loop, iteration, data if settings.data == "all" else data[-1:], start, reference)
    asked, baseline = history[0]["prompts"], history[0]["evaluation"]
    stages["evaluation"] = evaluation_stage(loop, iteration, asked, stages["policy"], baseline)
    return stages


def open_loop(
    settings: WorkflowSettings,
    objective: Objective,
    training: WorkflowTraining,
    judge: Judge | None = None,
    corpus: Sequence[DocstringPair] | None = None,
) -> Loop:
    """The constants of one objective's run. Raises ValueError for a model or judge that cannot be used.

    corpus: whose summaries say what a command is, for the house style (default: this machine's docstrings).
    """
    folder = Path(model_source(settings.model_name_or_path)).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model_name_or_path={settings.model_name_or_path!r}: {folder} holds no model (no config.json); give a "
            "folder of save_pretrained, or small or tiny"
        )
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no eos_token: nothing would say where a response ends")
    chosen = choose_judge(settings, training, judge, corpus)
    same = judge is None and settings.judge_name == settings.gold_name
    gold = chosen if same else gold_judge(settings.gold_name, corpus)
    return Loop(settings, objective, training, tokenizer, model_artefact(folder), chosen, gold)


def room_for_prompts(loop: Loop) -> int:
    """How many tokens a prompt may have. Raises ValueError if none are left beside a response."""
    context = getattr(load_config(loop.sft.path).get_text_config(), "max_position_embeddings", None) or 2**20
    if context <= loop.settings.max_new_tokens:
        raise ValueError(
            f"max_new_tokens={loop.settings.max_new_tokens} leaves no room for a prompt in {context} positions"
        )
    return context - loop.settings.max_new_tokens
