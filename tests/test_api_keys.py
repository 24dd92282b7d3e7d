"""An API key that a server repeats, in a name, an error or an answer, is shown nowhere."""

import json
import socket
import threading
import traceback

import pytest

from rlhf_lab.engine.serving.exchange import Server, ServerError, base_url, exchange
from rlhf_lab.judges.served import server_judge
from tests.test_server import MODEL, fake_server
from tests.test_server_faults import SECRET, one

ECHOES = {
    "a listed name": ({"data": [{"id": f"model-of-{SECRET}"}]}, (404, {}, b"no such model")),
    "the model's name": ({"data": []}, {"model": SECRET, "choices": []}),
    "a finish reason": (None, {"choices": [{"text": "a", "finish_reason": SECRET}]}),
    "a stop reason": (None, {"choices": [{"text": "a", "finish_reason": "stop", "stop_reason": [SECRET]}]}),
    "choices": (None, {"choices": SECRET}),
    "a choice": (None, {"choices": [{"text": None, "note": {SECRET: [SECRET]}}]}),
    "usage": (None, {"usage": {"prompt_tokens": SECRET}, "choices": [{"text": "a", "finish_reason": "stop"}]}),
    "a broken text": (None, {"choices": [{"text": f"\ufffd{SECRET}", "finish_reason": "length"}]}),
    "an error of another form": (None, (200, {}, json.dumps({"error": {"code": 400, SECRET: SECRET}}).encode())),
}


@pytest.mark.parametrize("place", ECHOES)
def test_wherever_a_server_repeats_the_key_it_is_not_shown(place, monkeypatch, recwarn):
    monkeypatch.setenv("LAB_KEY", SECRET)
    listed, said = ECHOES[place]
    server = fake_server(lambda _: said, None if listed is None else lambda: listed)
    with server as (url, _), pytest.raises(ServerError) as caught:
        one(url, api_key_variable="LAB_KEY", retries=0)
    shown = "".join(traceback.format_exception(caught.value)) + "".join(str(each.message) for each in recwarn)
    assert SECRET not in shown and "(the API key)" in shown


def test_a_judges_server_that_repeats_the_key_is_not_shown_either(monkeypatch):
    monkeypatch.setenv("LAB_KEY", SECRET)
    for logprobs in ({SECRET: 0.9}, {SECRET: -0.1}):
        choice = {"text": SECRET, "finish_reason": "length", "logprobs": {"top_logprobs": [logprobs]}}
        for kind in ("logprobs", "letter"):
            with fake_server(lambda _, said=choice: {"choices": [said]}) as (url, _):
                judge = server_judge(url, MODEL, answer=kind, api_key_variable="LAB_KEY")
                with pytest.raises(ServerError, match=r"\(the API key\)") as caught:
                    judge(["a"], [["b", "c"]])
            assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_status_line_that_repeats_the_key_is_not_shown(monkeypatch):
    """The reason phrase of an HTTP answer, which Python's own error prints."""
    monkeypatch.setenv("LAB_KEY", SECRET)
    raw = f"HTTP/1.1 401 {SECRET} is wrong\r\nContent-Length: 0\r\n\r\n".encode()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def reply():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(raw)

        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        with pytest.raises(ServerError, match=r"\(the API key\) is wrong") as caught:
            exchange(Server(url, MODEL, "LAB_KEY"), "/v1/models")
        thread.join()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_an_address_with_a_query_is_refused_unrepeated():
    with pytest.raises(ValueError, match=r"url holds more than an address") as caught:
        base_url(f"http://localhost:8000/v1?api_key={SECRET}")
    assert SECRET not in str(caught.value)
