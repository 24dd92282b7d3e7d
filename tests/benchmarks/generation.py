"""Sampling n responses a prompt: ours, transformers' `generate` and its continuous batching, in tokens per second.

    python -m tests.benchmarks.generation --json FILE
    python -m tests.benchmarks.generation --n 8 --prompts 32 --rounds 3 --threads 1 --clock cpu

The small model on real prompts (docstrings of this machine), temperature 1, no top-k or top-p. All take turns in every
round, so that what slows the machine for a while slows all; the first round (warm-up) is left out and the median of the
rest reported. Tokens count up to the first EOS: what a method computes beyond, it computes in vain.

    ours        `engine.generate.sample`: a prompt's keys and values shared by its responses, ended rows dropped
    generate    model.generate(num_return_sequences=n) on the same batches
    continuous  model.generate_batch(..): paged attention, a new response as soon as one ends

--clock cpu takes the processor's time instead of the wall's, for a machine that is busy with other things as well.

Why `sample` does not use continuous batching: on one thread of a CPU with AVX512-BF16, 24 prompts, n = 8, it made 299
tokens/s in fp32 and 312 in bf16, `generate` 184 and 368, ours 1,858 and 3,051 (--prompts 24 --rounds 1 --clock cpu).
It also draws by one generator for all requests, so that a response depends on who else is being served.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.docstrings import docstring_pairs
from rlhf_lab.engine.generate import sample
from rlhf_lab.engine.repeated_prompts import left_pad
from rlhf_lab.workflow.prompts import choose_documents, prompt_ids

METHODS = ("ours", "generate", "continuous")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS = 256  # responses decoded together, by ours and by generate


@dataclass(frozen=True)
class Task:
    """What all methods are given."""

    prompts: list[list[int]]
    n: int
    max_new_tokens: int
    eos: int
    pad: int

    def config(self, **changes) -> GenerationConfig:
        plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": self.n}
        ends = {"max_new_tokens": self.max_new_tokens, "eos_token_id": self.eos, "pad_token_id": self.pad}
        return GenerationConfig(**plain, **ends, **changes)

    def count(self, responses: Sequence[Sequence[int]]) -> int:
        """Tokens up to the first EOS, that included."""
        return sum(r.index(self.eos) + 1 if self.eos in r else len(r) for r in map(list, responses))


def ours(model, task: Task, seed: int) -> int:
    options = {"n": task.n, "max_new_tokens": task.max_new_tokens, "eos_token_id": task.eos}
    rows = sample(model, task.prompts, seed=seed, rows_per_batch=ROWS, **options)
    return task.count([response for row in rows for response in row])


def generate(model, task: Task, seed: int) -> int:
    torch.manual_seed(seed)
    by_length, size, total = sorted(task.prompts, key=len), max(1, ROWS // task.n), 0
    for first in range(0, len(by_length), size):
        ids, mask = left_pad(by_length[first : first + size], task.pad)
        output = model.generate(ids, attention_mask=mask, generation_config=task.config())
        total += task.count(output[:, ids.shape[1] :].tolist())
    return total


def continuous(model, task: Task, seed: int) -> int:
    torch.manual_seed(seed)
    outputs = model.generate_batch(task.prompts, generation_config=task.config())
    if len(outputs) != task.n * len(task.prompts):
        raise RuntimeError(f"{len(outputs)} responses came back, not {task.n * len(task.prompts)}")
    return task.count([output.generated_tokens for output in outputs.values()])


def measure(contestants: dict[str, Callable[[int], int]], rounds: int, clock: Callable[[], float]) -> list[dict]:
    """Let all take turns; a row of the table for each: the median speed, and how often ours it is, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for seed in range(1 + rounds):
        for name, contestant in contestants.items():
            start = clock()
            tokens = contestant(seed)
            speeds[name].append(tokens / (clock() - start))
    rows = []
    for name, each in speeds.items():
        baseline = speeds.get(f"ours {name.split()[1]}", each)
        ratio = median(a / b for a, b in zip(baseline[1:], each[1:], strict=True))
        rows.append({"method": name, "tokens_per_s": median(each[1:]), "ours_is_faster_by": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="FOLDER", help="default: the shipped small model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--n", type=int, default=8, help="responses per prompt")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.prompts, arguments.n, arguments.threads, arguments.max_new_tokens) < 1:
        parser.error("--rounds, --prompts, --n, --threads and --max_new_tokens must be at least 1")
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    rows = measure(contestants_of(arguments), arguments.rounds, CLOCKS[arguments.clock])
    print("| method | tokens/s | ours is faster by |\n|---|---|---|")
    for row in rows:
        print(f"| {row['method']} | {row['tokens_per_s']:,.0f} | {row['ours_is_faster_by']:.2f}x |")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(arguments), "rows": rows}, file, indent=1)


def contestants_of(arguments: argparse.Namespace) -> dict[str, Callable[[int], int]]:
    """{"ours fp32": a function of the seed that samples everything and returns the number of tokens, ..}."""
    path = arguments.model or small_model_path("small")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    longest = transformers.AutoConfig.from_pretrained(path).max_position_embeddings - arguments.max_new_tokens
    documents = choose_documents(docstring_pairs(), "validation", arguments.prompts, 0, tokenizer, longest)
    prompts = [prompt_ids(tokenizer, document.description) for document in documents]
    task = Task(prompts, arguments.n, arguments.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)

    def contestant(method: str, precision: str) -> Callable[[int], int]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=PRECISIONS[precision]).eval()
        function = {"ours": ours, "generate": generate, "continuous": continuous}[method]
        return lambda seed: function(model, task, seed)

    return {f"{m} {p}": contestant(m, p) for p in arguments.precision for m in arguments.methods}


if __name__ == "__main__":
    main()
