"""Sampling from a server that speaks the OpenAI completions protocol: vLLM, `transformers serve` and others.

    POST /v1/completions {model, prompt, max_tokens, temperature, top_p, seed}  ->  one response as token ids

One request a response, `concurrency` at a time: every server understands that, each response has its temperature and
its seed, and a server with a prefix cache (vLLM) still runs each prompt once.
"""

import json
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lab.data.encoding import bos_id, encode_prompt, response_ids
from rlhf_lab.data.problems import shorten
from rlhf_lab.engine.options import check_positive, check_sampling, each_temperature
from rlhf_lab.engine.serving.connection import ask, ask_all, check_server, one_choice
from rlhf_lab.engine.serving.exchange import Server, ServerError, base_url

Responses = dict[tuple[int, int], list[int]]
BROKEN = re.compile("[\ufffd\ud800-\udfff]")  # bytes that are no character, and halves of one


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
    api_key_variable: str | None = None,
    done: Responses | None = None,
    progress: str | None = None,
) -> list[list[list[int]]]:
    """n responses to each prompt as token ids, like `engine.generate.sample`: EOS last, none where it was cut.

    url: "http://host:port". model_name: as the server lists it. prompts: texts, or token ids as for `sample`.
    tokenizer: the served model's; responses come as text and are tokenised here again, which may part words otherwise
    than the model did. n, temperature(s), top_p, max_new_tokens, seed: as in `engine.generate.complete`; draws are the
    server's and repeat only if it honours seeds. timeout: seconds without an answer. retries: further attempts after
    408, 429, 5xx, a broken connection or a timeout, each after twice the wait, from `backoff` seconds on. send_ids:
    prompts travel as ids (vLLM), not as text.
    extra_body: more fields of each request. Servers take some settings from the model's generation_config.json, which
    is greedy or cut to top_k for many models: `plain_sampling` names the fields that undo it.
    api_key_variable: name of the environment variable with the server's API key; None: it wants none.
    done: responses of an earlier call that failed (`ServerError.done`); it receives those that arrive now. If nothing
    is missing no server is asked.
    Raises ServerError (an OSError) that says what is wrong, ValueError for a bad setting or a prompt that text cannot
    carry; warns if all responses to every prompt are the same.
    """
    heat = each_temperature(n, temperature, temperatures)
    check_sampling(n, heat, top_p, max_new_tokens)
    check_positive("concurrency", concurrency)
    server = Server(base_url(url), model_name, api_key_variable, timeout, retries, backoff)
    carried = [_carried(i, prompt, tokenizer, send_ids) for i, prompt in enumerate(prompts)]
    found = {} if done is None else done
    missing = [(i, j) for i in range(len(prompts)) for j in range(n) if (i, j) not in found]

    def ask_for(i: int, j: int) -> list[int]:
        body = {"prompt": carried[i][0], "max_tokens": max_new_tokens, "temperature": heat[j], "top_p": top_p}
        body |= {"seed": zlib.crc32(f"{seed}/{i}/{j}".encode()) >> 1, **(extra_body or {})}
        answer = ask(server, "/v1/completions", {"model": model_name, **body})
        return read_answer(server, answer, tokenizer, carried[i][1], f"prompt {i}, response {j}")

    if missing:
        check_server(server)
        ask_all(ask_for, missing, found, server.stop, concurrency, progress)
    rows = [[found[i, j] for j in range(n)] for i in range(len(prompts))]
    if rows and n > 1 and all(response == row[0] for row in rows for response in row):
        warnings.warn(
            f"all {n} responses to every prompt are the same: {server.url} seems to take the most likely token; for "
            "`transformers serve` see extra_body",
            stacklevel=2,
        )
    return rows


def plain_sampling(kind: str, ends: Sequence[int]) -> dict[str, Any]:
    """The `extra_body` that makes a server draw from softmax(logits / temperature), and end where we do.

    kind: "vllm", "transformers" (`transformers serve`), or "server" for any other, which is sent no further field.
    ends: the ids that end a response, the tokenizer's EOS first, as `engine.options.ending_ids` gives them.
    `transformers serve` does not say which of several ids ended a response: it is read as EOS.
    """
    if kind == "transformers":  # it samples only if told to, and knows this one field of its own
        told = {"eos_token_id": list(ends), "pad_token_id": ends[0]}
        return {"generation_config": json.dumps({"do_sample": True, "top_k": 0, **told})}
    if kind == "vllm":  # EOS it knows by itself, and says no `stop_reason` for it
        return {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": list(ends[1:])}
    return {}


def read_answer(
    server: Server, answer: dict, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int, name: str
) -> list[int]:
    """The one response's ids: behind a text that the model ended the token that ended it, none behind one that was cut.

    A response whose text is broken inside a character is cut there: the tokens of those bytes cannot be told, and
    U+FFFD would become tokens that nobody drew.
    Raises ServerError that names the request if there is no response to read.
    """
    choice = one_choice(server, answer, name)
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        said = shorten(server.masked(reason))
        raise ServerError(f"{server.url}, {name}: finish_reason is {said}, neither 'stop' nor 'length'")
    _check_prompt_tokens(server, answer, prompt_tokens, name)
    whole = choice["text"]
    text = BROKEN.split(whole, maxsplit=1)[0]
    end = _end_ids(server, choice, tokenizer, name) if text == whole else []
    if len(whole) > len(text) + 1 or (text != whole and reason == "stop"):
        said = shorten(ascii(server.masked(whole)))
        warnings.warn(f"{name}: {said} is no text from {len(text)} on; cut there", stacklevel=2)
    if not text and not end:
        raise ServerError(f"{server.url}, {name}: a response was cut before it had any text; raise max_new_tokens")
    return [*(response_ids(text, tokenizer) if text else ()), *end]


def _check_prompt_tokens(server: Server, answer: dict, prompt_tokens: int, name: str) -> None:
    usage = answer.get("usage")
    read = usage.get("prompt_tokens", prompt_tokens) if isinstance(usage, dict) else prompt_tokens
    if read != prompt_tokens:
        raise ServerError(
            f"{server.url} reads {name.split(',')[0]} as {server.masked(read)} tokens, the local tokenizer as "
            f"{prompt_tokens}: it serves another model or adds a template; give the tokenizer of the served model"
        )


def _end_ids(server: Server, choice: dict, tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """[the token that ended the response], [] if none did: it was cut, or a stop string was found in its text.

    vLLM's `stop_reason` is the id of the token or the string; null, or absent as on other servers, means EOS.
    """
    stop = choice.get("stop_reason")
    if choice["finish_reason"] == "length" or isinstance(stop, str):
        return []
    if stop is None:
        return [tokenizer.eos_token_id]
    if not isinstance(stop, int) or isinstance(stop, bool) or not 0 <= stop < len(tokenizer):
        said = shorten(server.masked(stop))
        raise ServerError(
            f"{server.url}, {name}: stop_reason is {said}, no token of the local tokenizer; give the served model's"
        )
    return [stop]


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
