"""Our preference training and TRL's DPOTrainer side by side: pairs per second and peak memory.

    python -m tests.benchmarks.preference_step --json FILE            # all shapes, models and precisions
    python -m tests.benchmarks.preference_step --shape tldr --model 6m --precision bf16 --rounds 5
    python -m tests.benchmarks.preference_step --growth               # pairs/s against prompt length

Three workers, each a process of its own (so that peak memory can be told apart), take turns in every round with the
same random model, the same pairs (random token ids, lengths spread as in real text), batch size 8, AdamW, precision:

    ours    reference log-probs of all pairs, then `train` on them: what `train_preference` does
    trl     DPOTrainer as it comes, its reference model in every step; gradient checkpointing, its default, switched
            off for speed, so that both trade no time for memory
    limit   for as many tokens as ours runs: a bare decoder with transformers' causal sdpa in full rows without padding,
            forward without gradient (the reference), forward and backward, the head on as many positions as there are
            response tokens; no attention pattern, no objective, no optimizer

The median over rounds is reported, the first round (warm-up) left out. `limit_share` is ours / limit; it may exceed 1
where our attention is faster than sdpa.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from statistics import median

# (mean prompt, mean response) in tokens; each length is drawn with a standard deviation of a quarter of the mean.
SHAPES = {"tldr": (400, 30), "dialogue": (128, 192)}
MODELS = {
    "6m": {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6},
    "50m": {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 10},
}
PRECISIONS = ("fp32", "bf16")
GROWTH = (100, 200, 400, 800, 1600)
BATCH_SIZE = 8


@dataclass(frozen=True)
class Case:
    """One row of the table. prompt, response: mean lengths in tokens. pairs: per round."""

    shape: str
    model: str
    precision: str
    prompt: int
    response: int
    pairs: int


def random_pairs(case: Case) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) ids; ids 0 and 1 are pad and EOS, responses end with EOS."""
    generator = random.Random(0)
    vocabulary = MODELS[case.model]["vocab_size"]

    def ids(mean: int) -> list[int]:
        length = round(min(max(generator.gauss(mean, mean / 4), mean / 3), 5 * mean / 3))
        return [generator.randrange(2, vocabulary) for _ in range(max(1, length))]

    return [(ids(case.prompt), [*ids(case.response), 1], [*ids(case.response), 1]) for _ in range(case.pairs)]


def random_model(case: Case):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = MODELS[case.model]
    config = LlamaConfig(
        **sizes,
        num_attention_heads=sizes["hidden_size"] // 64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def examples_of(case: Case):
    from rlhf_lab.data.examples import Example

    return [Example(tuple(p), (tuple(c), tuple(r)), i) for i, (p, c, r) in enumerate(random_pairs(case))]


def ours(case: Case, directory: str):
    """One round of ours, as a function without arguments."""
    from rlhf_lab.objective import Objective
    from rlhf_lab.training.loop import train
    from rlhf_lab.training.preference import preference_loss_fn
    from rlhf_lab.training.reference import reference_logps
    from rlhf_lab.training.settings import TrainingSettings

    model, examples = random_model(case), examples_of(case)
    settings = TrainingSettings(
        directory,
        learning_rate=1e-6,
        per_device_train_batch_size=BATCH_SIZE,
        bf16=case.precision == "bf16",
        device="cpu",
        save_steps=0,
        resume=False,
        disable_tqdm=True,
    )

    def round_of_ours() -> None:
        ref_logps = reference_logps(model, examples, cache_dir=None, bf16=settings.bf16, disable_tqdm=True)
        train(model, examples, preference_loss_fn(Objective(), ref_logps), settings)

    return round_of_ours


def trl(case: Case, directory: str):
    """One round of TRL's DPOTrainer, as a function without arguments."""
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    transformers.logging.set_verbosity_error()
    # A tokenizer whose text "t17 t4" is exactly the ids 17 4: TRL takes text, and both sides must see the same ids.
    words = {f"t{i}": i for i in range(2, MODELS[case.model]["vocab_size"])} | {"<pad>": 0, "<eos>": 1}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")

    def text(ids: list[int]) -> str:
        return "".join(f" t{i}" for i in ids)

    pairs = random_pairs(case)
    rows = [{"prompt": text(p), "chosen": text(c[:-1]), "rejected": text(r[:-1])} for p, c, r in pairs]
    trainer = DPOTrainer(
        random_model(case),
        ref_model=random_model(case),
        args=DPOConfig(
            directory,
            learning_rate=1e-6,
            beta=0.1,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            bf16=case.precision == "bf16",
            gradient_checkpointing=False,
            max_length=None,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    tokenized = [tuple(row[f"{name}_ids"] for name in rows[0]) for row in trainer.train_dataset]
    if tokenized != pairs:
        raise RuntimeError("TRL's tokens are not those of the pairs")
    return lambda: trainer.train()


def limit(case: Case, directory: str):
    """One round of the bare decoder on the same number of tokens in rows of their mean length."""
    import torch
    import torch.nn.functional as F

    model, examples = random_model(case), examples_of(case)
    width = sum(example.num_tokens for example in examples) // len(examples)
    answers = sum(len(response) for example in examples for response in example.responses) // len(examples)
    ids = torch.randint(2, model.config.vocab_size, (case.pairs, width))

    def negative_logps(rows):
        hidden = model.model(rows, use_cache=False)[0][:, -answers - 1 : -1]
        return F.cross_entropy(model.lm_head(hidden).flatten(0, 1).float(), rows[:, -answers:].flatten())

    def round_of_limit() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            with torch.no_grad():
                for rows in ids.split(BATCH_SIZE):
                    negative_logps(rows)
            for rows in ids.split(BATCH_SIZE):
                negative_logps(rows).backward()
                model.zero_grad()

    return round_of_limit


def serve(make, case: Case, connection) -> None:
    """A worker: make a round, run it whenever asked, answer (seconds, peak memory in GB)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):  # stdout is the table's
        run_round = make(case, directory)
        while connection.recv():
            start = time.perf_counter()
            run_round()
            seconds = time.perf_counter() - start
            unit = 2**30 if sys.platform == "darwin" else 2**20
            connection.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit))


def measure(case: Case, rounds: int) -> dict:
    """Run the workers in turns; a row of the table."""
    context = multiprocessing.get_context("spawn")
    names, workers, processes = ("ours", "trl", "limit"), [], []
    for make in (ours, trl, limit):
        connection, far_end = context.Pipe()
        process = context.Process(target=serve, args=(make, case, far_end), daemon=True)
        process.start()
        far_end.close()
        processes.append(process)
        workers.append(connection)
    answers = {name: [] for name in names}
    for _ in range(1 + rounds):
        for name, connection in zip(names, workers, strict=True):
            connection.send(True)
            answers[name].append(connection.recv())
    for connection, process in zip(workers, processes, strict=True):
        connection.send(False)
        process.join()
    seconds = {name: [taken for taken, _ in answers[name][1:]] for name in names}
    memory = {name: answers[name][-1][1] for name in names}
    speed = {name: case.pairs / median(seconds[name]) for name in names}
    tokens_per_pair = sum(len(ids) for pair in random_pairs(case) for ids in pair) / case.pairs

    def ratio(other: str) -> float:
        """Round by round, so that what slows the machine for a while slows both."""
        return median(theirs / mine for mine, theirs in zip(seconds["ours"], seconds[other], strict=True))

    return asdict(case) | {
        "ours_pairs_per_s": speed["ours"],
        "trl_pairs_per_s": speed["trl"],
        "speed_ratio": ratio("trl"),
        "limit_pairs_per_s": speed["limit"],
        "limit_share": ratio("limit"),
        "ours_tokens_per_s": speed["ours"] * tokens_per_pair,
        "trl_tokens_per_s": speed["trl"] * tokens_per_pair,
        "ours_memory_gb": memory["ours"],
        "trl_memory_gb": memory["trl"],
        "memory_ratio": memory["ours"] / memory["trl"],
    }


COLUMNS = ("shape", "model", "precision", "prompt", "pairs/s ours", "TRL", "ratio", "limit", "share of limit")
COLUMNS += ("tokens/s ours", "TRL", "memory ours (GB)", "TRL", "ratio")


def table_row(row: dict) -> str:
    cells = [row["shape"], row["model"], row["precision"], str(row["prompt"])]
    cells += [f"{row['ours_pairs_per_s']:.2f}", f"{row['trl_pairs_per_s']:.2f}", f"**{row['speed_ratio']:.1f}x**"]
    cells += [f"{row['limit_pairs_per_s']:.2f}", f"{row['limit_share']:.0%}"]
    cells += [f"{row['ours_tokens_per_s']:,.0f}", f"{row['trl_tokens_per_s']:,.0f}"]
    cells += [f"{row['ours_memory_gb']:.1f}", f"{row['trl_memory_gb']:.1f}", f"**{row['memory_ratio']:.2f}x**"]
    return "| " + " | ".join(cells) + " |"


def cases(arguments: argparse.Namespace) -> list[Case]:
    chosen = [
        Case(shape, model, precision, *SHAPES[shape], arguments.pairs)
        for shape in arguments.shape
        for model in arguments.model
        for precision in arguments.precision
    ]
    if not arguments.growth:
        return chosen
    response = SHAPES["tldr"][1]
    first = [case for case in chosen if case.shape == arguments.shape[0]]
    return [replace(case, shape="growth", prompt=length, response=response) for case in first for length in GROWTH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one to warm up")
    parser.add_argument("--pairs", type=int, default=32, help="pairs per round")
    parser.add_argument("--growth", action="store_true", help="prompts of 100 to 1600 tokens instead of the shapes")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.pairs < 1:
        parser.error("--rounds and --pairs must be at least 1")
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for case in cases(arguments):
        rows.append(measure(case, arguments.rounds))
        print(table_row(rows[-1]), flush=True)
        if arguments.json:
            with open(arguments.json, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
