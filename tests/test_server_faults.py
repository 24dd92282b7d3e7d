"""What a server may say besides a plain answer: waits, errors, ends of a response, broken characters; its API key."""

import json
import logging
import time
import warnings
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.engine.serving import connection
from rlhf_lab.engine.serving.exchange import Server, ServerError, seconds_asked
from rlhf_lab.engine.serving.sampling import server_sample
from rlhf_lab.judges.served import server_judge
from rlhf_lab.workflow.settings import WorkflowSettings
from tests.test_server import MODEL, PROMPTS, answer, draw, fake_server
from tests.toy import toy_tokenizer
from tests.training_helpers import EOS

SECRET = "sk-9f2c71d05be84a36"


def one(url: str, **changes):
    """One response to one prompt, as ids."""
    return draw(url, PROMPTS[:1], n=1, **changes)[0][0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "Retry-After": "1"}, 0.25),  # OpenAI sends both; seconds are the rounded ones
        ({"retry-after-ms": "soon", "Retry-After": "3"}, 3.0),
        ({}, 0.0),
        ({"Retry-After": "later"}, 0.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "inf"}, 0.0),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),  # over already
    ],
)
def test_the_wait_that_a_server_asks_for_is_read_in_seconds(headers, seconds):
    assert seconds_asked(headers) == seconds


def test_a_date_to_come_back_at_is_a_wait_from_now(monkeypatch):
    """The clock stands at 2026-11-29 00:00:00 GMT, and the server says 00:00:12."""
    now = 1795910400.0
    assert formatdate(now, usegmt=True) == "Sun, 29 Nov 2026 00:00:00 GMT"
    monkeypatch.setattr(time, "time", lambda: now)
    assert seconds_asked({"Retry-After": "Sun, 29 Nov 2026 00:00:12 GMT"}) == 12.0


@given(st.text())
def test_no_header_breaks_the_reading(text):
    assert seconds_asked({"Retry-After": text, "retry-after-ms": text}) >= 0.0


@pytest.mark.parametrize("headers", [{"retry-after-ms": "40"}, {"Retry-After": "0.04"}])
def test_the_client_waits_as_long_as_it_is_asked_to(headers, monkeypatch):
    """A backoff of 1 ms would wait 1 to 1.5 ms; the server asks for 40 ms, so 40 to 60 ms are waited."""
    waits = []
    monkeypatch.setattr(connection.random, "uniform", lambda low, high: low)
    monkeypatch.setattr("threading.Event.wait", lambda self, seconds=None: waits.append(seconds))
    refused = iter([True])

    def exchange(server, path, body=None):
        if body and next(refused, False):
            busy = connection.Transient("busy", 429)
            busy.wait = seconds_asked(headers)
            raise busy
        return answer(body) if body else {"data": [{"id": MODEL}]}

    monkeypatch.setattr(connection, "exchange", exchange)
    server = Server("http://127.0.0.1:9", MODEL, backoff=0.001)
    body = {"model": MODEL, "prompt": "w5"}
    assert connection.ask(server, "/v1/completions", body) == answer(body)
    assert waits == [pytest.approx(0.04)]


ERROR_BODIES = {
    "CUDA out of memory": {"error": {"message": "CUDA out of memory", "type": "server_error"}},
    "no such adapter": {"object": "error", "message": "no such adapter", "code": 404},
    "plain words": {"error": "plain words"},
}


@pytest.mark.parametrize("message", ERROR_BODIES)
def test_an_error_that_comes_as_200_is_shown_and_not_asked_for_again(message):
    with (
        fake_server(lambda _: ERROR_BODIES[message]) as (url, seen),
        pytest.raises(ServerError, match=f"200 with an error: .*{message}"),
    ):
        one(url)
    assert len(seen) == 1


def test_a_busy_server_that_says_so_as_200_is_asked_again():
    busy = iter([True])

    def complete(body):
        return {"error": {"message": "rate limit", "code": 429}} if next(busy, False) else answer(body)

    with fake_server(complete) as (url, seen):
        assert one(url) == [3, 4, EOS]
    assert len(seen) == 2


def test_an_answer_with_an_empty_error_field_is_an_answer():
    with fake_server(lambda body: answer(body, error=None)) as (url, _):
        assert one(url) == [3, 4, EOS]


@pytest.mark.parametrize(
    ("stop_reason", "ids"),
    [(None, [3, 4, EOS]), ("\n\n", [3, 4]), (7, [3, 4, 7]), (EOS, [3, 4, EOS])],
)
def test_what_ended_a_response_stands_at_its_end(stop_reason, ids):
    """null is EOS, a string is no token at all, and an id is that id."""
    choice = {"text": "w3 w4", "finish_reason": "stop", "stop_reason": stop_reason}
    with fake_server(lambda body: answer(body, choices=[choice])) as (url, _):
        assert one(url) == ids


@pytest.mark.parametrize("stop_reason", [-1, 10**6, True, 1.5])
def test_an_end_that_is_no_token_is_named(stop_reason):
    choice = {"text": "w3 w4", "finish_reason": "stop", "stop_reason": stop_reason}
    with (
        fake_server(lambda body: answer(body, choices=[choice])) as (url, _),
        pytest.raises(ServerError, match=f"prompt 0, response 0: stop_reason is {stop_reason}"),
    ):
        one(url)


@pytest.mark.parametrize("broken", ["\ufffd", "\ud83d"])
def test_a_response_that_is_cut_inside_a_character_ends_before_it(broken):
    """Bytes that are no character yet: the tokens drawn for them are not those of U+FFFD. No EOS: it was cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fake_server(lambda body: answer(body, f"w3 w4{broken}", "length")) as (url, _):
            assert one(url) == [3, 4]


@pytest.mark.parametrize("broken", ["\ufffd", "\ude00"])
@pytest.mark.parametrize(("text", "reason"), [("w3 w4{} w5", "length"), ("w3 w4{} w5", "stop"), ("w3 w4{}", "stop")])
def test_a_response_that_is_broken_elsewhere_is_cut_there_with_a_warning(text, reason, broken):
    with (
        fake_server(lambda body: answer(body, text.format(broken), reason)) as (url, _),
        pytest.warns(UserWarning, match=r"prompt 0, response 0: .*is no text from 5 on"),
    ):
        assert one(url) == [3, 4]


def test_a_response_of_broken_characters_only_is_named():
    with (
        fake_server(lambda body: answer(body, "\ufffd", "length")) as (url, _),
        pytest.raises(ServerError, match=r"prompt 0, response 0: .*cut before it had any text"),
    ):
        one(url)


def test_the_key_comes_from_the_environment_and_is_read_for_each_call(monkeypatch):
    for key in ("first", "second"):
        monkeypatch.setenv("LAB_KEY", key)
        with fake_server(answer) as (url, seen):
            one(url, api_key_variable="LAB_KEY")
        assert {body["key"] for body in seen} == {f"Bearer {key}"}


def test_without_a_variable_no_key_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with fake_server(answer) as (url, seen):
        one(url)
    assert [body["key"] for body in seen] == [None]


def refusal(status: int):
    """Some servers repeat the key that they refuse."""
    return status, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}}).encode()


@pytest.mark.parametrize("listing", [False, True])
def test_a_401_says_that_a_key_is_missing_and_nothing_about_the_model(listing):
    models = (lambda: (401, {}, b"who are you")) if listing else (lambda: {"data": []})
    with (
        fake_server(lambda _: (401, {}, b"who are you"), models) as (url, _),
        pytest.raises(ServerError, match=r"401.*who are you.*wants an API key.*api_key_variable") as caught,
    ):
        one(url)
    assert caught.value.status == 401 and "does not serve" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_refusal_that_is_not_about_the_model_is_not_said_to_be(status):
    with (
        fake_server(lambda _: (status, {}, b"no"), lambda: {"data": []}) as (url, _),
        pytest.raises(ServerError, match=f"answered {status}") as caught,
    ):
        one(url, retries=0)
    assert "does not serve" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 503])
def test_a_refused_key_is_named_by_its_variable_and_never_shown(status, monkeypatch, caplog, capfd):
    monkeypatch.setenv("LAB_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    with fake_server(lambda _: refusal(status)) as (url, seen), pytest.raises(ServerError) as caught:
        one(url, api_key_variable="LAB_KEY", retries=1)
    assert seen[0]["key"] == f"Bearer {SECRET}"
    assert "(the API key)" in str(caught.value)
    assert ("LAB_KEY" in str(caught.value)) == (status in (401, 403))
    cause: BaseException | None = caught.value
    while cause is not None:
        assert SECRET not in f"{cause!r} {cause} {vars(cause)}"
        cause = cause.__cause__
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_a_redirect_is_named_and_the_key_is_not_carried_to_another_host(monkeypatch):
    monkeypatch.setenv("LAB_KEY", SECRET)
    with fake_server(answer) as (other, stolen):
        moved = (302, {"Location": f"{other}/v1/completions"}, b"")
        with fake_server(lambda _: moved) as (url, _), pytest.raises(ServerError, match=f"302.*points to '{other}"):
            one(url, api_key_variable="LAB_KEY")
    assert stolen == []


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LAB_KEY", None, "environment variable LAB_KEY is empty or not set"),
        ("LAB_KEY", "  ", "environment variable LAB_KEY is empty or not set"),
        ("LAB_KEY", f"{SECRET}\r\nX-Evil: 1", "environment variable LAB_KEY holds characters"),
        ("LAB_KEY", f"{SECRET}é", "environment variable LAB_KEY holds characters"),
        (SECRET, None, "not the name of an environment variable"),  # the key in place of its name
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_before_anything_is_and_not_shown(variable, value, message, monkeypatch):
    monkeypatch.delenv("LAB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    with fake_server(answer) as (url, seen), pytest.raises(ValueError, match=message) as caught:
        one(url, api_key_variable=variable)
    assert seen == [] and SECRET not in str(caught.value)


def test_a_server_does_not_show_its_key(monkeypatch):
    monkeypatch.setenv("LAB_KEY", SECRET)
    server = Server("http://localhost:1", MODEL, "LAB_KEY")
    assert SECRET not in f"{server!r} {vars(server)}"


def test_the_served_judge_sends_its_key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with fake_server(lambda body: answer(body, "A", "length")) as (url, seen):
        judge = server_judge(url, MODEL, answer="letter", api_key_variable="JUDGE_KEY")
        assert judge(["w5"], [["w3", "w4"]]) == [[0.5, 0.5]]
    assert {body["key"] for body in seen} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeout": 0.0}, "timeout=0.0: must be finite and above 0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"retries": -1}, "retries=-1: must be 0 or more"),
        ({"backoff": -0.5}, "backoff=-0.5"),
        ({"url": f"http://me:{SECRET}@localhost:1"}, "url holds a user or a password"),
    ],
)
def test_impatience_and_passwords_in_addresses_are_refused(changes, message):
    settings = {"url": "http://localhost:1"} | changes
    with pytest.raises(ValueError, match=message) as caught:
        server_sample(settings.pop("url"), MODEL, [[5]], toy_tokenizer(), **settings)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"api_key_variable": "LAB_KEY"}, "api_key_variable='LAB_KEY' would be ignored: sampler='local'"),
        ({"judge_api_key_variable": "LAB_KEY"}, "judge_api_key_variable='LAB_KEY' would be ignored: judge='house'"),
        ({"server_timeout": 9.0}, "server_timeout=9.0 would be ignored: a workflow without a server"),
        ({"server_retries": 9}, "server_retries=9 would be ignored: a workflow without a server"),
        ({"sampler": "vllm", "server_url": "http://a:1", "server_timeout": 0.0}, "server_timeout=0.0: must be"),
        ({"sampler": "vllm", "server_url": "http://a:1", "server_retries": -1}, "server_retries=-1: must be"),
    ],
)
def test_the_loops_settings_of_a_server_are_refused_where_they_do_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        WorkflowSettings(**changes)
