"""Sampling through a completions server: a fake one on loopback for every failure, and `transformers serve` itself."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from rlhf_lab.common.assets import small_model_path
from rlhf_lab.data.docstrings import DocstringPair
from rlhf_lab.engine.serving.exchange import ServerError
from rlhf_lab.engine.serving.sampling import plain_sampling, server_sample
from rlhf_lab.workflow.loop import run_workflow
from tests.training_helpers import EOS, tiny_tokenizer
from tests.workflow_toy import toy_run

MODEL = "tiny"
PROMPTS = ["w5 w6 w7", "w8 w9", "w10"]
QUICK = {"backoff": 0.001, "timeout": 60.0, "n": 2}


def answer(body: dict, text: str = "w3 w4", reason: str = "stop", **changes) -> dict:
    """What a good server says to a request."""
    usage = {"prompt_tokens": len(body["prompt"].split()) if isinstance(body["prompt"], str) else len(body["prompt"])}
    return {"model": body["model"], "choices": [{"text": text, "finish_reason": reason}], "usage": usage} | changes


@contextmanager
def fake_server(complete: Callable, models: Callable | None = None):
    """complete(body), models() -> a dict, or (status, headers, bytes); yields the address and the requests seen."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply((models or (lambda: {"data": [{"id": MODEL}]}))())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "key": self.headers["Authorization"]})
            self.reply(complete(body))

        def reply(self, said):
            status, headers, content = said if isinstance(said, tuple) else (200, {}, json.dumps(said).encode())
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:
                pass  # the client had lost patience

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", seen
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def draw(url: str, prompts=PROMPTS, **changes):
    return server_sample(url, MODEL, prompts, tiny_tokenizer(), **(QUICK | changes))


def test_responses_are_ids_with_eos_only_where_the_model_stopped():
    """Text "w3 w4" is ids 3, 4; "stop" puts EOS behind, "length" does not, and no text and "stop" is EOS alone."""
    said = {"w5 w6 w7": ("w3 w4", "stop"), "w8 w9": ("w3 w4", "length"), "w10": ("", "stop")}
    with fake_server(lambda body: answer(body, *said[body["prompt"]])) as (url, seen):
        rows = draw(url, n=1)
    assert rows == [[[3, 4, EOS]], [[3, 4]], [[EOS]]]
    assert len(seen) == 3


def test_each_response_has_its_place_temperature_and_seed(monkeypatch):
    monkeypatch.setenv("LAB_KEY", "k")
    with fake_server(lambda body: answer(body, f"w{len(body['prompt'])} w{int(10 * body['temperature'])}")) as (
        url,
        seen,
    ):
        settings = {"top_p": 0.9, "max_new_tokens": 7, "api_key_variable": "LAB_KEY"}
        rows = draw(url + "/v1/", n=3, temperatures=(1.0, 0.7, 0.5), **settings)
    assert rows == [[[len(p), t, EOS] for t in (10, 7, 5)] for p in PROMPTS]
    assert len({body["seed"] for body in seen}) == 9
    assert all((b["model"], b["max_tokens"], b["top_p"], b["key"]) == (MODEL, 7, 0.9, "Bearer k") for b in seen)


def test_seeds_of_requests_depend_on_prompt_and_response_only():
    def seeds(prompts, **options):
        with fake_server(answer) as (url, seen), pytest.warns(UserWarning, match="the same"):
            draw(url, prompts, **options)
        return {(b["prompt"], b["seed"]) for b in seen}

    few, many = seeds(PROMPTS[:2], concurrency=1), seeds(PROMPTS, concurrency=8, n=3)
    assert few < many
    assert not few & seeds(PROMPTS[:2], seed=1)


def test_requests_run_side_by_side():
    """Each of six requests waits until three are there at once: one after another they would wait forever."""
    barrier = threading.Barrier(3, timeout=60)

    def complete(body):
        barrier.wait()
        return answer(body, f"w{3 + body['seed'] % 30}")

    with fake_server(complete) as (url, seen):
        assert len(draw(url, concurrency=3)) == 3
    assert len(seen) == 6


def test_ids_and_extra_fields_travel():
    with fake_server(lambda body: answer(body, f"w{3 + body['seed'] % 30}")) as (url, seen):
        draw(url, send_ids=True, extra_body={"top_k": -1})
    assert [5, 6, 7] in [body["prompt"] for body in seen]
    assert all(body["top_k"] == -1 for body in seen)


def test_prompts_may_be_ids_and_travel_as_their_text():
    with fake_server(answer) as (url, seen):
        assert draw(url, [[5, 6, 7], [8]], n=1) == [[[3, 4, EOS]]] * 2
    assert sorted(body["prompt"] for body in seen) == ["w5 w6 w7", "w8"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    refused = iter([True] * 4)

    def complete(body):
        if next(refused, False):
            return status, {"Retry-After": "0"}, b"busy"
        return answer(body, f"w{3 + body['seed'] % 30}")

    with fake_server(complete) as (url, seen):
        assert len(draw(url)) == 3
    assert len(seen) == 3 * 2 + 4


def test_patience_ends():
    message = r"503 .*loading.*gave up after 3 attempts"
    with fake_server(lambda _: (503, {}, b"loading")) as (url, seen), pytest.raises(ServerError, match=message):
        draw(url, PROMPTS[:1], n=1, retries=2)
    assert len(seen) == 3


def test_waits_double():
    times = []

    def complete(body):
        times.append(time.monotonic())
        return 500, {}, b""

    with fake_server(complete) as (url, _), pytest.raises(ServerError):
        draw(url, PROMPTS[:1], n=1, retries=3, backoff=0.05)
    waits = [b - a for a, b in pairwise(times)]
    assert all(wait >= 0.05 * 2**k for k, wait in enumerate(waits))


def test_a_late_answer_is_asked_for_again_and_then_given_up():
    release = threading.Event()
    late = iter([True])

    def complete(body):
        if next(late, False):
            release.wait(5)
        return answer(body)

    def never(body):
        release.wait(5)
        return answer(body)

    with fake_server(complete) as (url, seen):
        assert draw(url, PROMPTS[:1], n=1, timeout=0.2, retries=100) == [[[3, 4, EOS]]]
        assert len(seen) >= 2  # more where 0.2 s is short
    with fake_server(never) as (url, _), pytest.raises(ServerError, match=r"no answer within 0\.2 s"):
        draw(url, PROMPTS[:1], n=1, timeout=0.2, retries=1)
    release.set()


def test_a_missing_server_is_named_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port}.*vllm serve tiny") as caught:
        draw(f"http://127.0.0.1:{port}", backoff=60.0)  # without any wait
    assert isinstance(caught.value, OSError)  # so that the command line says it in one line


SERVED = {
    # As vLLM says it, and a server that ignores the name and answers with what it has.
    r"does not exist": lambda body: (404, {}, b'{"message": "The model `tiny` does not exist."}'),
    r"answered with the model 'other-7b', not 'tiny'": lambda body: answer(body, model="other-7b"),
}


@pytest.mark.parametrize("message", SERVED)
def test_another_model_is_named(message):
    served = fake_server(SERVED[message], lambda: {"data": [{"id": "other-7b"}]})
    with served as (url, _), pytest.raises(ServerError, match=f"does not serve 'tiny'; it lists other-7b.*{message}"):
        draw(url)


@pytest.mark.parametrize("listing", [{"data": []}, {}, (500, {}, b"no cache"), (404, {}, b"no such path")])
def test_a_model_that_is_served_but_not_listed_is_accepted(listing):
    with fake_server(lambda body: answer(body, model="tiny@main"), lambda: listing) as (url, _):
        assert draw(url, n=1) == [[[3, 4, EOS]]] * 3


WRONG = {
    "not JSON": (200, {}, b"<html>gateway</html>"),
    "no JSON object": (200, {}, b"[1, 2]"),
    "2 choices": {"choices": [{"text": "w3", "finish_reason": "stop"}] * 2},
    "0 choices": {"choices": []},
    "choices None": {},
    "has no text": {"choices": [{"text": None, "finish_reason": "stop"}]},
    "finish_reason is None": {"choices": [{"text": "w3"}]},
    "the model 'other'": {"model": "other", "choices": [{"text": "w3", "finish_reason": "stop"}]},
    "reads prompt 0 as 9 tokens, the local tokenizer as 3": {
        "choices": [{"text": "w3", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9},
    },
    "cut before it had any text": {"choices": [{"text": "", "finish_reason": "length"}]},
    "401 .*who are you": (401, {}, b"who are you"),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_answer_is_named_and_not_asked_for_again(message):
    with fake_server(lambda _: WRONG[message]) as (url, seen), pytest.raises(ServerError, match=message):
        draw(url, PROMPTS[:1], n=1)
    assert len(seen) == 1


def test_what_had_arrived_is_not_lost():
    """Prompt 2 fails for good; the next call asks for its responses only."""

    def complete(body):
        return (400, {}, b"too long") if body["prompt"] == "w10" else answer(body, f"w{3 + body['seed'] % 30}")

    with fake_server(complete) as (url, _), pytest.raises(ServerError, match="too long") as caught:
        draw(url, concurrency=1)
    assert sorted(caught.value.done) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with fake_server(lambda body: answer(body, "w4")) as (url, seen):
        rows = draw(url, done=caught.value.done)
    assert [body["prompt"] for body in seen] == ["w10", "w10"]
    assert rows[0] == [caught.value.done[0, 0], caught.value.done[0, 1]]


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        (["w5 <eos> w6"], {}, "prompt 0 would be other tokens"),
        ([[5, EOS, 0, 39, 40]], {}, "prompt 0 would be other tokens"),
        ([[]], {}, "prompt 0 has no token"),
        (PROMPTS, {"concurrency": 0}, "concurrency=0"),
        (PROMPTS, {"temperatures": (1.0,)}, "1 values for n=2"),
        (PROMPTS, {"top_p": 2.0}, "top_p"),
        (PROMPTS, {"url": "localhost:8000"}, "address of a server"),
        (PROMPTS, {"url": "file:///etc/hosts"}, "address of a server"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_sent(prompts, changes, message):
    with fake_server(answer) as (url, seen), pytest.raises(ValueError, match=message):
        draw(changes.pop("url", url), prompts, **changes)
    assert seen == []


def test_no_prompts_need_no_server():
    assert draw("http://127.0.0.1:9", []) == []


NEEDED = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]


@contextmanager
def transformers_server():
    """`transformers serve` of any model on a free port of loopback, offline; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    flags = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 900
        while True:
            assert time.monotonic() < deadline, b"".join(said).decode()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, b"".join(said).decode()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def served():
    """The address of one `transformers serve` for all tests of this file: it takes seconds to start."""
    if NEEDED:
        pytest.skip(f"transformers[serving] is absent: no {', '.join(NEEDED)}")
    with transformers_server() as url:
        yield url


def test_transformers_serve(served):
    """The real server with the small model `tiny`: sampled, cut, greedy, and a model that is not there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_lab.data.encoding import encode_prompt
    from rlhf_lab.engine.generate import sample

    folder = str(small_model_path("tiny"))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompts = ["Returns the number of rows in the table. <tldr>", "Close the file and release its resources. <tldr>"]
    options = {"extra_body": plain_sampling("transformers", [tokenizer.eos_token_id]), "timeout": 600.0}
    rows = server_sample(served, folder, prompts, tokenizer, n=3, temperatures=(1.0, 0.7, 0.5), **options)
    cut = server_sample(served, folder, prompts, tokenizer, max_new_tokens=3, **options)
    # Greedy by default (its generation_config.json does not sample): the very tokens of our own greedy search.
    greedy = server_sample(served, folder, prompts, tokenizer, max_new_tokens=8, timeout=600.0)
    with pytest.raises(ServerError, match=r"answered 500 .*gave up after 1 attempt"):
        server_sample(served, "other/model", prompts, tokenizer, retries=0)
    assert len({tuple(response) for row in rows for response in row}) > 3
    assert all(response[-1] == EOS or len(response) >= 40 for row in rows for response in row)
    assert all(EOS not in response for (response,) in cut)
    ids = [list(encode_prompt(prompt, tokenizer)) for prompt in prompts]
    ours = sample(model.float(), ids, greedy=True, max_new_tokens=8, eos_token_id=EOS)
    assert [tokenizer.decode(r, skip_special_tokens=True) for (r,) in greedy] == [
        tokenizer.decode(r, skip_special_tokens=True) for (r,) in ours
    ]


def test_transformers_serve_ends_at_every_id_that_it_is_told(served):
    """Cold enough to be greedy: the token behind the first one ends the response, if it is named beside EOS."""
    from transformers import AutoTokenizer

    folder = str(small_model_path("tiny"))
    tokenizer, prompts = AutoTokenizer.from_pretrained(folder), ["Returns the number of rows in the table. <tldr>"]

    def drawn(ends: list[int]) -> list[int]:
        options = {"extra_body": plain_sampling("transformers", ends), "temperature": 1e-4, "timeout": 600.0}
        return server_sample(served, folder, prompts, tokenizer, max_new_tokens=8, **options)[0][0]

    whole = drawn([EOS])
    place = next(i for i in range(1, len(whole)) if whole[i] not in whole[:i])
    assert drawn([EOS, whole[place]]) == [*whole[: place + 1], EOS]


@pytest.mark.usefixtures("no_figure")
def test_transformers_serve_draws_for_the_online_loop(served, tmp_path):
    """Without a model of its own it loads the iterate that each request names; it gives no log-probs to judge by."""
    tiny = {"prompts": 2, "eval_prompts": 2, "eval_samples": 1, "max_steps": 1, "max_new_tokens": 5}
    corpus = [
        DocstringPair(f"Returns {i} rows of the table.", "Rows.", ("validation", "test")[i % 2], "toy", str(i))
        for i in range(8)
    ]

    def by_hash(prompts, responses, references=None):
        """No two texts tie: whatever the server draws, there is something to train on."""
        return [[zlib.crc32(text.encode()) / 2**32 for text in row] for row in responses]

    folder = str(small_model_path("tiny"))
    run = toy_run(tmp_path, folder, judge="hash", sampler="transformers", server_url=served, **tiny)
    found = run_workflow(*run, corpus=corpus, judge=by_hash)
    assert found["policies"][2]["pairs"]["prompts"] == 2 and not list(tmp_path.glob("iteration-*/.*"))
    judge = {"judge": "server", "judge_url": served, "judge_model": folder, "sampler": "local"}
    with pytest.raises(OSError, match=r"stage iteration-1, scores: .*no top_logprobs.*--judge_answer letter"):
        run_workflow(*toy_run(tmp_path, folder, **(tiny | judge)), corpus=corpus)
