"""The online loop with completions servers as sampler and as judge: fake ones that really run the models asked for."""

import hashlib
import json
import math
import threading
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit

from rlhf_lab.engine.generate import sample
from rlhf_lab.engine.loading import load_generation_config, load_model
from rlhf_lab.engine.serving.exchange import ServerError
from rlhf_lab.judges.pairwise import pairwise_judge
from rlhf_lab.judges.served import question, server_judge
from rlhf_lab.workflow.loop import run_workflow
from rlhf_lab.workflow.settings import WorkflowSettings
from tests.test_server import answer, fake_server
from tests.test_workflow import content, remade, stage_folder, table
from tests.toy import save_toy, toy_corpus, toy_model, toy_tokenizer
from tests.workflow_toy import run, toy_run

TOKENIZER = toy_tokenizer()
PROMPTS = ["read file row <tldr>", "open key <tldr>"]
RESPONSES = [["open file", "close key row", "open file"], ["", "table", "write socket"]]


pytestmark = pytest.mark.usefixtures("no_figure")


@pytest.fixture(scope="module")
def pairwise_folder(tmp_path_factory) -> str:
    """Another toy model whose tokenizer parts "A:open" into A, : and open, as the judge's prompt needs it."""
    folder, tokenizer = tmp_path_factory.mktemp("judge"), toy_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    tokenizer.save_pretrained(folder)
    model = toy_model(seed=3, width=64)
    for weight in model.parameters():
        weight.data *= 5.0  # opinions that rounding cannot hide
    model.save_pretrained(folder)
    return str(folder)


def left_over(out: Path) -> list[str]:
    found = [path.name for folder in (out, *out.glob("iteration-*")) for path in folder.glob(".*")]
    return [name for name in found if name != ".lock"]  # which the system needs to stay


def is_draw(body: dict) -> bool:
    """No question after the model's name, which has one token."""
    return body["max_tokens"] > 1


class Engine:
    """A server of whatever model folder a request names, or of one, with a number of draws after which it fails."""

    def __init__(self, only: str | None = None, draws: float = math.inf) -> None:
        self.only, self.draws = only, draws
        self.models: dict[str, object] = {}
        self.lock = threading.Lock()  # one draw at a time: a fake needs no more

    def __call__(self, body: dict):
        with self.lock:
            if self.only not in (None, body["model"]):
                return 404, {}, b'{"message": "The model does not exist."}'
            self.draws -= is_draw(body)
            return answer(body, *self.draw(body)) if self.draws >= 0 else (400, {}, b"the engine has died")

    def draw(self, body: dict) -> tuple[str, str]:
        folder, prompt = body["model"], body["prompt"]
        model = self.models.setdefault(folder, load_model(folder))
        ids = TOKENIZER(prompt).input_ids if isinstance(prompt, str) else prompt
        options = {name: body[name] for name in ("temperature", "seed") if name in body}
        ((tokens,),) = sample(model, [ids], max_new_tokens=body["max_tokens"], eos_token_id=1, **options)
        return TOKENIZER.decode(tokens, skip_special_tokens=True), "stop" if tokens[-1] == 1 else "length"


def test_a_server_draws_what_each_iterate_says(sft, tmp_path):
    """Candidates and calibration of both iterations come from the folder of the policy that they are to come from."""
    settings = {"alpha": 0.1, "calibration": "reference", "sampler": "server"}
    with fake_server(Engine()) as (url, seen):
        found = run(tmp_path, sft, "vpo-online", server_url=url, **settings)
        policy = str(stage_folder(tmp_path, 1, "policy"))
        drawn = [body for body in seen if is_draw(body)]
        assert {b["model"] for b in drawn} == {sft, policy} and len(drawn) == 2 * 8 * (2 + 1)
        assert all(b["max_tokens"] == 6 and b["temperature"] == 1.0 for b in drawn)
    rows = table(tmp_path, 2, "candidates")
    assert sum(b["model"] == policy for b in drawn) == len(rows) == 16
    prompt = TOKENIZER.decode(table(tmp_path, 2, "prompts")[0]["ids"])
    said = [Engine().draw(b) for b in drawn if b["model"] == policy and b["prompt"] == prompt]
    assert sorted(row["text"] for row in rows[:2]) == sorted(text for text, _ in said)
    assert not left_over(tmp_path)

    again = run(tmp_path, sft, "vpo-online", server_url="http://127.0.0.1:9", **settings)
    assert remade(again) == set()  # another address, and no server there
    local = run(tmp_path, sft, "vpo-online", alpha=0.1, calibration="reference", iterations=1)
    assert {"1 candidates", "1 calibration"} <= remade(local)
    assert content(local, "1 candidates") != content(found, "1 candidates")


def test_each_kind_of_server_is_told_to_cut_nothing(sft, tmp_path):
    seen = {}
    for kind in ("vllm", "transformers"):
        with fake_server(Engine()) as (url, bodies):
            run(tmp_path / kind, sft, sampler=kind, server_url=url, iterations=1, concurrency=3)
        seen[kind] = next(body for body in bodies if is_draw(body))
    assert seen["vllm"]["top_k"] == -1 and seen["vllm"]["repetition_penalty"] == 1.0
    assert isinstance(seen["vllm"]["prompt"], list)
    config = json.loads(seen["transformers"]["generation_config"])
    assert config["do_sample"] is True and config["top_k"] == 0 and config["eos_token_id"] == [1]
    assert isinstance(seen["transformers"]["prompt"], str)


def test_a_server_is_told_every_token_that_ends_a_response(tmp_path):
    """The generation config's list, which the local sampler ends at; vLLM knows the tokenizer's EOS by itself."""
    sft, told = save_toy(tmp_path / "sft"), {}
    file = tmp_path / "sft" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [9, 1]}))
    for kind in ("vllm", "transformers"):
        with fake_server(Engine()) as (url, bodies):
            run(tmp_path / kind, sft, sampler=kind, server_url=url)
        told[kind] = [body for body in bodies if is_draw(body)]
        assert len({body["model"] for body in told[kind]}) == 2  # the first policy, and one that was trained
    assert {tuple(body["stop_token_ids"]) for body in told["vllm"]} == {(9,)}
    ends = {tuple(json.loads(body["generation_config"])["eos_token_id"]) for body in told["transformers"]}
    assert ends == {(1, 9)}
    file.unlink()
    assert load_generation_config(sft).eos_token_id == 1  # its config.json says so


@pytest.mark.parametrize(
    ("draws", "stage", "arrived", "missing"), [(21, "candidates", 21, 11 + 8), (38, "calibration", 6, 2)]
)
def test_a_server_that_fails_half_way_loses_nothing(draws, stage, arrived, missing, sft, tmp_path):
    settings = {"iterations": 1, "candidates": 4, "pairs_per_prompt": 1, "alpha": 0.1, "sampler": "server"}
    with fake_server(Engine()) as (url, _):
        whole = run(tmp_path / "whole", sft, "vpo-online", server_url=url, **settings)
    message = rf"stage iteration-1, {stage}: .*engine has died.* {arrived} of \d+ responses .*are kept.*same command"
    with fake_server(Engine(draws=draws)) as (url, _), pytest.raises(OSError, match=message):
        run(tmp_path / "b", sft, "vpo-online", server_url=url, concurrency=1, **settings)
    assert len(left_over(tmp_path / "b")) == 1
    with fake_server(Engine()) as (url, seen):
        again = run(tmp_path / "b", sft, "vpo-online", server_url=url, **settings)
    assert sum(map(is_draw, seen)) == missing
    assert again["artefacts"] == whole["artefacts"] and not left_over(tmp_path / "b")


def test_a_server_of_another_policy_is_never_drawn_from(sft, tmp_path):
    """One engine that serves one model: the loop stops for each policy that it needs, and goes on when it is there."""
    settings = {"objective": "dpo", "sampler": "server"}  # current/reference
    with fake_server(Engine()) as (url, _):
        whole = run(tmp_path / "whole", sft, "xpo", server_url=url, **settings)
    policy = str(stage_folder(tmp_path / "whole", 1, "policy")).replace("whole", "b")
    for served, wanted in ((sft, policy), (policy, sft)):
        message = rf"iteration-2, candidates: .*does not serve '{wanted}'.*served under the name {wanted}: by `vllm"
        with fake_server(Engine(only=served)) as (url, _), pytest.raises(OSError, match=message):
            run(tmp_path / "b", sft, "xpo", server_url=url, **settings)
    with fake_server(Engine(only=sft)) as (url, _):
        assert run(tmp_path / "b", sft, "xpo", server_url=url, **settings)["artefacts"] == whole["artefacts"]


def test_a_sampler_that_is_missing_names_stage_and_address(sft, tmp_path):
    message = r"stage iteration-1, candidates: no completions server answers: http://127\.0\.0\.1:9.*0 of 32 responses"
    with pytest.raises(OSError, match=message):
        run(tmp_path, sft, sampler="vllm", server_url="http://127.0.0.1:9/v1")
    assert stage_folder(tmp_path, 0, "evaluation") and not left_over(tmp_path / "iteration-1")


class Judging:
    """A server of one pairwise model that lists the log-probs of its whole vocabulary."""

    def __init__(self, folder: str, answers: float = math.inf) -> None:
        self.model, self.answers = load_model(folder), answers
        self.tokenizer = type(TOKENIZER).from_pretrained(folder)
        self.lock = threading.Lock()

    def __call__(self, body: dict):
        with self.lock, torch.no_grad():
            self.answers -= "logprobs" in body
            if self.answers < 0:
                return 400, {}, b"the engine has died"
            ids = torch.tensor([self.tokenizer(body["prompt"]).input_ids])
            found = self.model(ids).logits[0, -1].log_softmax(-1).tolist()
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(found))))
        return judged(body, dict(zip(tokens, found, strict=True)))


def judged(body: dict, logprobs: dict) -> dict:
    """What vLLM says, with these log-probs of the one token."""
    found = {"tokens": [max(logprobs, key=logprobs.get)], "top_logprobs": [logprobs]}
    choice = {"text": found["tokens"][0], "finish_reason": "length", "logprobs": found}
    return {"model": body["model"], "choices": [choice]}


def listed() -> dict:
    return {"data": [{"id": "judge"}]}


def judge_at(url: str, **options):
    return server_judge(url, "judge", **({"backoff": 0.001, "timeout": 5.0, "retries": 1} | options))


def test_the_served_judge_is_the_local_one(pairwise_folder):
    served = Judging(pairwise_folder)
    with fake_server(served, listed) as (url, seen):
        scores = judge_at(url)(PROMPTS, RESPONSES, None)
        asked = [body for body in seen if "logprobs" in body]
    local = pairwise_judge(served.model, served.tokenizer)(PROMPTS, RESPONSES, None)
    assert [pytest.approx(row, abs=1e-6) for row in local] == scores
    assert max(abs(s - 0.5) for row in scores for s in row) > 0.01
    # Two of the first prompt's three responses are equal: 3 different questions of 6.
    assert len(asked) == 3 + 6 and all(b["max_tokens"] == 1 and b["temperature"] == 0.0 for b in asked)
    assert "read file row <tldr>\n\nA:open file\n\nB:close key row\n\nBetter:" in [b["prompt"] for b in asked]


def hashed(body: dict) -> dict:
    """A judge without sense, the same for the same prompt, that likes slot A."""
    p = 0.3 + 0.6 * hashlib.sha256(body["prompt"].encode()).digest()[0] / 255
    return judged(body, {" A": math.log(0.6 * p), "A": math.log(0.4 * p), "B": math.log1p(-p), "\n": -30.0})


def test_both_orders_sum_to_one_whatever_the_slots():
    with fake_server(hashed, listed) as (url, _):
        scores = judge_at(url)(PROMPTS, [row[:2] for row in RESPONSES], None)
    for prompt, (a, b), (first, second) in zip(PROMPTS, [row[:2] for row in RESPONSES], scores, strict=True):
        p = []
        for pair in ((a, b), (b, a)):
            top = hashed({"prompt": question(prompt, *pair), "model": ""})["choices"][0]["logprobs"]["top_logprobs"][0]
            p.append(1 - math.exp(top["B"]))
        assert first == pytest.approx((p[0] + 1 - p[1]) / 2, abs=1e-6)
        assert first + second == pytest.approx(1.0, abs=1e-6)


def test_a_letter_counts_as_zero_or_one():
    """This model writes A whenever the text in slot A is longer, and where both are as long."""

    def longer(body):
        first, second = body["prompt"].split("A:")[-1].removesuffix("\n\nBetter:").split("\n\nB:")
        return answer(body, " A" if len(first) >= len(second) else "B", "length")

    with fake_server(longer, listed) as (url, seen):
        scores = judge_at(url, answer="letter")(PROMPTS[:1], [["row", "key", "table"]], None)
    assert scores == [[0.25, 0.25, 1.0]]
    assert not any("logprobs" in body for body in seen)


def one(logprobs) -> dict:
    return {"choices": [{"text": "A", "finish_reason": "length", "logprobs": logprobs}]}


NOT_READABLE = {
    r"comparison 0 of 2: the answer has no top_logprobs.*--judge_answer letter": one(None),
    "no top_logprobs": one({"top_logprobs": []}),
    r"not a log-prob of each of some tokens": one({"top_logprobs": [{"A": math.nan, "B": -1.0}]}),
    r"'A': 0.9.*not a log-prob": one({"top_logprobs": [{"A": 0.9, "B": 0.1}]}),
    r"\[None\], not a log-prob": one({"top_logprobs": [None]}),
    r"'A': None.*not a log-prob": one({"top_logprobs": [{"A": None}]}),
    r"A and B are not among the 2 most likely answers": one({"top_logprobs": [{"The": -0.1, "It": -3.0}]}),
    r"A and B are not among the 1 most": one({"top_logprobs": [{"A": -0.7}]}),  # B may have the other half
    "0 choices": {"choices": []},
    "has no text": {"choices": [{"text": None}]},
    "not JSON": (200, {}, b"<html>gateway</html>"),
    "400 .*too long": (400, {}, b"too long"),
    "503 .*busy.*gave up after 2 attempts": (503, {}, b"busy"),
}


@pytest.mark.parametrize("message", NOT_READABLE)
def test_an_answer_that_is_no_judgement_is_named(message):
    served = fake_server(lambda _: NOT_READABLE[message], listed)
    with served as (url, _), pytest.raises(ServerError, match=message):
        judge_at(url, concurrency=1)(PROMPTS[:1], [["row", "key"]], None)


def test_a_label_that_hardly_matters_may_be_missing():
    told = one({"top_logprobs": [{"A": -0.01, "The": -5.5, "It": -6.0}]})
    with fake_server(lambda _: told, listed) as (url, _):
        assert judge_at(url)(PROMPTS[:1], [["row", "key"]], None) == [[0.5, 0.5]]  # A in both orders


def test_a_late_judge_another_model_and_other_letters_are_named():
    release = threading.Event()

    def late(body):
        release.wait(5)
        return hashed(body)

    def refused(complete, message, models=listed, **options):
        with fake_server(complete, models) as (url, _), pytest.raises(ServerError, match=message):
            judge_at(url, **options)(PROMPTS[:1], [["row", "key"]], None)

    refused(late, r"no answer within 0\.1 s; gave up after 2 attempts", timeout=0.1)
    release.set()
    another = r"does not serve 'judge'; it lists tiny.*model 'other', not 'judge'"
    refused(lambda body: hashed(body) | {"model": "other"}, another, models=None)
    wrote = r"comparison \d of 2: the model wrote 'The', neither A nor B"
    refused(lambda body: answer(body, "The"), wrote, answer="letter")


def test_the_loop_with_a_served_judge_is_the_loop_with_the_model_itself(sft, pairwise_folder, tmp_path):
    """The same pairs and, to rounding, scores; the judge's answers are kept when it fails; its address is no matter."""
    local = run(tmp_path / "local", sft, judge=pairwise_folder, iterations=1)
    served = {"judge": "server", "judge_model": "judge 1", "iterations": 1}
    message = r"stage iteration-1, scores: .*engine has died.*same command goes on"
    with fake_server(Judging(pairwise_folder, answers=30)) as (url, _), pytest.raises(OSError, match=message):
        run(tmp_path / "b", sft, judge_url=url, concurrency=1, **served)
    (kept,) = (tmp_path / "b").glob(".judged-*.jsonl")
    assert len(kept.read_text().splitlines()) == 30
    with fake_server(Judging(pairwise_folder)) as (url, seen):
        found = run(tmp_path / "b", sft, judge_url=url, **served)
    texts = [[row["text"] for row in table(tmp_path / "b", 1, "candidates") if row["prompt"] == i] for i in range(8)]
    asked = [
        question(row["prompt"], *pair)
        for row, drawn in zip(table(tmp_path / "b", 1, "prompts"), texts, strict=True)
        for pair in ((a, b) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j)
    ]
    scored = {body["prompt"] for body in seen if "logprobs" in body} & set(asked)
    assert len(scored) == len(set(asked)) - 30
    assert not left_over(tmp_path / "b")

    columns = ("status", "chosen_tokens", "rejected_tokens")
    both = [[[row[c] for c in columns] for row in table(tmp_path / name, 1, "pairs")] for name in ("local", "b")]
    assert both[0] == both[1]
    reward = [numbers["policies"][1]["score"]["reward"]["mean"] for numbers in (local, found)]
    assert reward[0] == pytest.approx(reward[1], abs=1e-5) and reward[0] != 0.5
    assert found["judges"] == ["score", "gold"]

    assert remade(run(tmp_path / "b", sft, judge_url="http://127.0.0.1:9", **served)) == set()
    with pytest.raises(OSError, match=r"iteration-1, scores: no completions server answers"):
        run(tmp_path / "b", sft, judge_url="http://127.0.0.1:9", **(served | {"judge_model": "judge 2"}))
    with pytest.raises(OSError, match=r"iteration-1, scores: no completions server answers"):
        run(tmp_path / "b", sft, judge_url="http://127.0.0.1:9", judge_answer="letter", **served)


def test_the_loops_keys_reach_both_servers_and_no_file(sft, pairwise_folder, tmp_path, monkeypatch, capfd):
    """Two servers, two keys; another key, as a new one at a renewal, makes nothing again."""
    drawing, judging = "sk-drawing-51ac", "sk-judging-77e0"
    monkeypatch.setenv("DRAW_KEY", drawing)
    monkeypatch.setenv("JUDGE_KEY", judging)
    keys = {"api_key_variable": "DRAW_KEY", "judge_api_key_variable": "JUDGE_KEY"}
    settings = {"sampler": "server", "judge": "server", "judge_model": "judge 1", "iterations": 1} | keys
    with fake_server(Engine()) as (url, drawn), fake_server(Judging(pairwise_folder)) as (judge_url, judged_bodies):
        run(tmp_path, sft, server_url=url, judge_url=judge_url, **settings)
    assert {body["key"] for body in drawn} == {f"Bearer {drawing}"}
    assert {body["key"] for body in judged_bodies} == {f"Bearer {judging}"}
    secrets = (drawing.encode(), judging.encode())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if any(secret in path.read_bytes() for secret in secrets)]
    printed = "".join(capfd.readouterr()).encode()
    assert not any(secret in printed for secret in secrets)

    monkeypatch.setenv("DRAW_KEY", "another")
    addresses = {"server_url": "http://127.0.0.1:9", "judge_url": "http://127.0.0.1:9"}
    assert remade(run(tmp_path, sft, **(settings | addresses | {"judge_api_key_variable": None}))) == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "vllm"}, "sampler='vllm' needs server_url"),
        ({"sampler": "vllm", "server_url": "localhost:8000"}, "server_url='localhost:8000': give the address"),
        ({"sampler": "tgi"}, "sampler='tgi': must be one of local, vllm, transformers, server"),
        ({"server_url": "http://localhost:1"}, "server_url='http://localhost:1' would be ignored: sampler='local'"),
        ({"judge": "server", "judge_model": "m"}, "judge='server' needs judge_url"),
        ({"judge": "server", "judge_url": "http://localhost:1"}, "judge='server' needs judge_model"),
        ({"judge": "server", "judge_url": "file:///x", "judge_model": "m"}, "judge_url='file:///x': give the address"),
        ({"judge_model": "m"}, "judge_model='m' would be ignored: judge='house'"),
        ({"judge_answer": "letter"}, "judge_answer='letter' would be ignored"),
        ({"concurrency": 4}, "concurrency=4 would be ignored"),
        ({"concurrency": 0}, "concurrency=0: must be 1 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        WorkflowSettings(**changes)


def test_a_function_cannot_stand_in_for_a_served_judge(sft, tmp_path):
    settings = toy_run(tmp_path, sft, judge="server", judge_url="http://127.0.0.1:9", judge_model="m")
    with pytest.raises(ValueError, match="would ignore the function"):
        run_workflow(*settings, corpus=toy_corpus(), judge=lambda prompts, responses, references=None: [])
