"""Sampling from a server that speaks the OpenAI completions protocol: vLLM, `transformers serve` and others.

    POST /v1/completions {model, prompt, max_tokens, temperature, top_p, seed}  ->  one response as token ids

One request a response, `concurrency` at a time: every server understands that, each response has its temperature and
its seed, and a server with a prefix cache (vLLM) still runs each prompt once. Python's own HTTP client and a pool of
threads do it; no further package is needed.
"""

import http.client
import json
import random
import threading
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_lab.text.encoding import bos_id, encode_prompt, response_ids
from rlhf_lab.text.generate import check_positive, check_sampling, each_temperature
from rlhf_lab.text.problems import shorten

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the server asks for

Responses = dict[tuple[int, int], list[int]]


class ServerError(ConnectionError):
    """The server is missing, serves another model, or answers wrongly; the message says what to do.

    status: the HTTP status, if there was one. done: {(prompt, response): ids} of what had arrived: hand it to
    `server_sample(done=...)` to go on from there.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.done: Responses = {}


class Transient(ServerError):
    """Busy, broken off or late: worth another attempt, after `wait` seconds if the server says so."""

    wait = 0.0


class Server(NamedTuple):
    """Where to ask and how patiently; `stop` ends all waiting when another request has failed for good."""

    url: str
    model_name: str
    api_key: str | None
    timeout: float
    retries: int
    backoff: float
    stop: threading.Event


def server_sample(
    url: str,
    model_name: str,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 1,
    temperature: float = 1.0,
    temperatures: Sequence[float] | None = None,
    top_p: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    concurrency: int = 16,
    timeout: float = 120.0,
    retries: int = 5,
    backoff: float = 0.5,
    send_ids: bool = False,
    extra_body: Mapping[str, Any] | None = None,
    api_key: str | None = None,
    done: Responses | None = None,
    progress: str | None = None,
) -> list[list[list[int]]]:
    """n responses to each prompt as token ids, like `text.generate.sample`: EOS last, none where it was cut.

    url: "http://host:port". model_name: as the server lists it. prompts: texts, or token ids as for `sample`.
    tokenizer: the served model's; responses come as text and are tokenised here again, which may part words otherwise
    than the model did. n, temperature(s), top_p, max_new_tokens, seed: as in `text.generate.complete`; draws are the
    server's and repeat only if it honours seeds. timeout: seconds without an answer. retries: further attempts after
    408, 429, 5xx, a broken connection or a timeout, each after twice the wait, from `backoff` seconds on. send_ids:
    prompts travel as ids (vLLM), not as text.
    extra_body: more fields of each request. `transformers serve` takes the model's generation_config.json, which is
    greedy for many models: {"generation_config": '{"do_sample": true, "top_k": 0, "eos_token_id": 1}'}.
    done: responses of an earlier call that failed (`ServerError.done`).
    Raises ServerError (an OSError) that says what is wrong, ValueError for a bad setting or a prompt that text cannot
    carry; warns if all responses to every prompt are the same.
    """
    heat = each_temperature(n, temperature, temperatures)
    check_sampling(n, heat, top_p, max_new_tokens)
    check_positive("concurrency", concurrency)
    server = Server(_base(url), model_name, api_key, timeout, retries, backoff, threading.Event())
    carried = [_carried(i, prompt, tokenizer, send_ids) for i, prompt in enumerate(prompts)]
    if not prompts:
        return []
    check_server(server)

    def ask_for(i: int, j: int) -> list[int]:
        body = {"prompt": carried[i][0], "max_tokens": max_new_tokens, "temperature": heat[j], "top_p": top_p}
        body |= {"seed": zlib.crc32(f"{seed}/{i}/{j}".encode()) >> 1, **(extra_body or {})}
        answer = ask(server, "/v1/completions", {"model": model_name, **body})
        return read_answer(server, answer, tokenizer, carried[i][1], f"prompt {i}, response {j}")

    found = dict(done or {})
    missing = [(i, j) for i in range(len(prompts)) for j in range(n) if (i, j) not in found]
    _ask_all(ask_for, missing, found, server.stop, concurrency, progress)
    rows = [[found[i, j] for j in range(n)] for i in range(len(prompts))]
    if n > 1 and all(response == row[0] for row in rows for response in row):
        warnings.warn(
            f"all {n} responses to every prompt are the same: {server.url} seems to take the most likely token; for "
            "`transformers serve` see extra_body",
            stacklevel=2,
        )
    return rows


def check_server(server: Server) -> None:
    """Raises ServerError unless a server answers and serves the model.

    `transformers serve` lists what lies in its cache, not what it serves: for a name that is not listed a request for
    one token decides.
    """
    try:
        listed = _exchange(server, "/v1/models").get("data")
    except ServerError as error:
        if error.status is None:
            start = (
                f"start one there, e.g. `vllm serve {server.model_name}` or `transformers serve {server.model_name}`"
            )
            raise ServerError(f"no completions server answers: {error}; {start}, or correct the address") from error
        listed = None  # it answers, but lists nothing
    names = [entry.get("id") for entry in listed or [] if isinstance(entry, dict)]
    if server.model_name in names:
        return
    problem = f"{server.url} does not serve {server.model_name!r}; it lists {', '.join(map(str, names)) or 'no model'}"
    try:
        body = {"model": server.model_name, "prompt": "a", "max_tokens": 1}
        _check_model(server, ask(server, "/v1/completions", body))
    except ServerError as error:
        if error.status is None or error.status >= 500:
            raise  # it is busy or broken; that says nothing about the model
        raise ServerError(f"{problem}; asked for it: {error}", error.status) from error


def ask(server: Server, path: str, body: dict) -> dict:
    """The answer's JSON object; what is `Transient` is tried again, each time after twice the wait."""
    for attempt in range(server.retries + 1):
        try:
            return _exchange(server, path, body)
        except Transient as error:
            if attempt == server.retries or server.stop.is_set():
                raise ServerError(f"{error}; gave up after {attempt + 1} attempts", error.status) from error
            # Up to half as long again at random, so that many clients do not come back all at once.
            wait = max(error.wait, server.backoff * 2**attempt) * random.uniform(1.0, 1.5)
            server.stop.wait(min(wait, LONGEST_WAIT))
    raise AssertionError("unreachable: the last attempt returns or raises")


def read_answer(
    server: Server, answer: dict, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int, name: str
) -> list[int]:
    """The one response's ids: EOS behind a text that the model ended, none behind one that was cut."""
    _check_model(server, answer)
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = f"{len(choices)} choices" if isinstance(choices, list) else f"choices {shorten(choices)}"
        raise ServerError(f"{server.url}, {name}: one choice was asked for, the answer has {count}")
    text, reason = choices[0].get("text"), choices[0].get("finish_reason")
    if not isinstance(text, str):
        raise ServerError(f"{server.url}, {name}: the choice has no text: {shorten(choices[0])}")
    if reason not in ("stop", "length"):
        raise ServerError(f"{server.url}, {name}: finish_reason is {reason!r}, neither 'stop' nor 'length'")
    usage = answer.get("usage")
    read = usage.get("prompt_tokens", prompt_tokens) if isinstance(usage, dict) else prompt_tokens
    if read != prompt_tokens:
        raise ServerError(
            f"{server.url} reads {name.split(',')[0]} as {read} tokens, the local tokenizer as {prompt_tokens}: it "
            "serves another model or adds a template; give the tokenizer of the served model"
        )
    if not text and reason == "length":
        raise ServerError(f"{server.url}, {name}: a response was cut before it had any text; raise max_new_tokens")
    ids = list(response_ids(text, tokenizer)) if text else []
    return [*ids, tokenizer.eos_token_id] if reason == "stop" else ids


def _ask_all(ask_for, missing, found: Responses, stop: threading.Event, concurrency: int, progress: str | None) -> None:
    """Fill `found`; the first failure ends all others and carries away what has arrived."""
    pool = ThreadPoolExecutor(concurrency)
    try:
        futures = {pool.submit(ask_for, *key): key for key in missing}
        bar = tqdm(as_completed(futures), total=len(futures), desc=progress, unit="response", disable=progress is None)
        for future in bar:
            found[futures[future]] = future.result()
    except BaseException as error:
        stop.set()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, ServerError):
            arrived = [f for f in futures if f.done() and not f.cancelled() and f.exception() is None]
            error.done = found | {futures[f]: f.result() for f in arrived}
        raise
    pool.shutdown()


def _exchange(server: Server, path: str, body: dict | None = None) -> dict:
    """One request, one answer: a JSON object, or a ServerError, `Transient` if another attempt may help."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if server.api_key:
        headers["Authorization"] = f"Bearer {server.api_key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, headers=headers)
    # A proxy from the environment cannot reach this machine's own loopback.
    proxies = urllib.request.ProxyHandler({} if urlsplit(server.url).hostname in LOOPBACK else None)
    try:
        with urllib.request.build_opener(proxies).open(request, timeout=server.timeout) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        raise _refusal(server, path, error) from error
    except (http.client.HTTPException, OSError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", error)
        late = isinstance(reason, TimeoutError)
        what = f"no answer within {server.timeout:g} s" if late else f"{type(reason).__name__}: {reason}"
        raise Transient(f"{server.url}{path}: {what}") from error
    try:
        value = json.loads(content)
    except ValueError as error:
        text = shorten(content.decode(errors="replace"))
        raise ServerError(f"{server.url}{path} answered something that is not JSON: {text}", 200) from error
    if not isinstance(value, dict):
        raise ServerError(f"{server.url}{path} answered no JSON object: {shorten(value)}", 200)
    return value


def _refusal(server: Server, path: str, error: urllib.error.HTTPError) -> ServerError:
    with error:
        said = shorten(error.read().decode(errors="replace"))
    message = f"{server.url}{path} answered {error.code} {error.reason}: {said}"
    if error.code not in (408, 429) and error.code < 500:
        return ServerError(message, error.code)
    transient = Transient(message, error.code)
    asked = error.headers.get("Retry-After", "")
    transient.wait = float(asked) if asked.isdigit() else 0.0
    return transient


def _check_model(server: Server, answer: dict) -> None:
    served = answer.get("model", server.model_name)
    if served != server.model_name and str(served).split("@")[0] != server.model_name:  # transformers adds "@main"
        raise ServerError(f"{server.url} answered with the model {served!r}, not {server.model_name!r}", 400)


def _carried(
    i: int, prompt: str | Sequence[int], tokenizer: PreTrainedTokenizerBase, send_ids: bool
) -> tuple[str | list[int], int]:
    """What is sent for a prompt, and its number of tokens. Raises ValueError if text would be read as other tokens."""
    ids = list(encode_prompt(prompt, tokenizer)) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise ValueError(f"prompt {i} has no token; give it at least a BOS or separator token")
    if send_ids:
        return ids, len(ids)
    # The server puts BOS in front by itself, as tokenizer(text) does.
    body = ids[1:] if ids[0] == bos_id(tokenizer) else ids
    text = prompt if isinstance(prompt, str) else tokenizer.decode(body)
    if list(tokenizer(text).input_ids) != ids:
        raise ValueError(
            f"prompt {i} would be other tokens on the server ({shorten(text)}), as when it spells a special token in "
            "its text; change it, or use send_ids=True with a server that accepts ids (vLLM)"
        )
    return text, len(ids)


def _base(url: str) -> str:
    """Scheme, host and port, without the /v1 that many people add."""
    base = url.rstrip("/").removesuffix("/v1")
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
        raise ValueError(f"url={url!r}: give the address of a server, like http://localhost:8000")
    return base
