"""One completions server: requests with patience, errors that say what to do, and what had arrived when one failed.

Every kind of question to a server is asked here: `engine.serving.sampling` draws responses, `judges.served` compares
them. Python's own HTTP client and a pool of threads do it; no further package is needed.
"""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tqdm.auto import tqdm

from rlhf_lab.common.words import counted
from rlhf_lab.data.problems import shorten
from rlhf_lab.engine.serving.exchange import BUSY, Arrived, Server, ServerError, Transient, exchange

LONGEST_WAIT = 60.0  # seconds between two attempts, whatever the server asks for
SAY_NOTHING_OF_THE_MODEL = (401, 403, *BUSY)  # statuses of a refusal that another model would meet too


def check_server(server: Server) -> None:
    """Raises ServerError unless a server answers and serves the model.

    `transformers serve` lists what lies in its cache, not what it serves: for a name that is not listed a request for
    one token decides.
    """
    try:
        listed = exchange(server, "/v1/models").get("data")
    except ServerError as error:
        if error.status is None:
            start = (
                f"start one there, e.g. `vllm serve {server.model_name}` or `transformers serve {server.model_name}`"
            )
            raise ServerError(f"no completions server answers: {error}; {start}, or correct the address") from error
        if error.status == 401:
            raise
        listed = None  # it answers, but lists nothing
    names = [entry.get("id") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    if server.model_name in names:
        return
    listing = server.masked(", ".join(map(str, names))) or "no model"
    problem = f"{server.url} does not serve {server.model_name!r}; it lists {listing}"
    try:
        body = {"model": server.model_name, "prompt": "a", "max_tokens": 1}
        check_model(server, ask(server, "/v1/completions", body))
    except ServerError as error:
        if error.status is None or error.status >= 500 or error.status in SAY_NOTHING_OF_THE_MODEL:
            raise
        raise ServerError(f"{problem}; asked for it: {error}", error.status) from error


def check_model(server: Server, answer: dict) -> None:
    """Raises ServerError if the answer says that another model gave it."""
    served = answer.get("model", server.model_name)
    if served != server.model_name and str(served).split("@")[0] != server.model_name:  # transformers adds "@main"
        other = server.masked(served)
        raise ServerError(f"{server.url} answered with the model {other!r}, not {server.model_name!r}", 400)


def one_choice(server: Server, answer: dict, name: str) -> dict:
    """The only choice of the right model's answer. Raises ServerError that names the request, `name`."""
    check_model(server, answer)
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = f"{len(choices)} choices" if isinstance(choices, list) else f"choices {shorten(server.masked(choices))}"
        raise ServerError(f"{server.url}, {name}: one choice was asked for, the answer has {count}")
    if not isinstance(choices[0].get("text"), str):
        raise ServerError(f"{server.url}, {name}: the choice has no text: {shorten(server.masked(choices[0]))}")
    return choices[0]


def ask(server: Server, path: str, body: dict) -> dict:
    """The answer's JSON object; what is `Transient` is tried again, each time after twice the wait."""
    for attempt in range(server.retries + 1):
        try:
            return exchange(server, path, body)
        except Transient as error:
            if attempt == server.retries or server.stop.is_set():
                asked = f"; it asks to wait {error.wait:.0f} s" if error.wait > LONGEST_WAIT else ""
                tried = f"gave up after {counted(attempt + 1, 'attempt')}"
                raise ServerError(f"{error}; {tried}{asked}", error.status) from error
            # Up to half as long again at random, so that many clients do not come back all at once.
            wait = max(error.wait, server.backoff * 2**attempt) * random.uniform(1.0, 1.5)
            server.stop.wait(min(wait, LONGEST_WAIT))
    raise AssertionError("unreachable: the last attempt returns or raises")


def ask_all(
    ask_for: Callable[[int, int], Any],
    keys: Sequence[tuple[int, int]],
    found: Arrived,
    stop: threading.Event,
    concurrency: int,
    progress: str | None = None,
) -> None:
    """found[key] = ask_for(*key) for all keys; whatever ends it early, `found` holds what has arrived.

    The first failure ends all others, and a ServerError carries `found` away as its `done`.
    """
    pool = ThreadPoolExecutor(concurrency)
    futures = {pool.submit(ask_for, *key): key for key in keys}
    try:
        bar = tqdm(as_completed(futures), total=len(futures), desc=progress, unit="answer", disable=progress is None)
        for future in bar:
            found[futures[future]] = future.result()
    except BaseException as error:
        stop.set()
        pool.shutdown(cancel_futures=True)
        arrived = [f for f in futures if f.done() and not f.cancelled() and f.exception() is None]
        found.update({futures[f]: f.result() for f in arrived})
        if isinstance(error, ServerError):
            error.done = found
        raise
    pool.shutdown()
