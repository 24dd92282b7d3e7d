"""One request to a server and its one answer: a JSON object, or an error that says what to do and holds no secret."""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from rlhf_lab.data.problems import shorten
from rlhf_lab.engine.serving.keys import read_api_key, without_key

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEEPEST = 100  # levels of JSON in an answer
BUSY = (408, 429)  # and every status from 500 on: another attempt may help

Arrived = dict[tuple[int, int], Any]  # {(prompt, response): token ids}, {(comparison, order): probability}


class ServerError(ConnectionError):
    """The server is missing, serves another model, or answers wrongly; the message says what to do.

    status: the HTTP status, if there was one. done: what had arrived, by request.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.done: Arrived = {}


class Transient(ServerError):
    """Busy, broken off or late: worth another attempt, after `wait` seconds if the server says so."""

    wait = 0.0


@dataclass(frozen=True)
class Server:
    """Where to ask and how patiently; `stop` ends all waiting when another request has failed for good.

    url: scheme, host and port, as `base_url` gives it. api_key_variable: name of the environment variable that holds
    the API key, None for a server that wants none; the key itself is kept out of every text that is made of a Server.
    timeout: seconds without an answer. retries: further attempts. backoff: seconds before the first of them.
    Raises ValueError that names the setting.
    """

    url: str
    model_name: str
    api_key_variable: str | None = None
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5
    stop: Event = field(default_factory=Event, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_patience(self.timeout, self.retries)
        if not 0.0 <= self.backoff < math.inf:
            raise ValueError(f"backoff={self.backoff}: must be finite and 0 or above, in seconds")
        read_api_key(self.api_key_variable)

    def masked(self, said: Any) -> Any:
        """What the server said, text or JSON, as it may be shown: without the key."""
        return without_key(read_api_key(self.api_key_variable), said)


def check_patience(timeout: float, retries: int, prefix: str = "") -> None:
    """Raises ValueError unless timeout is seconds above 0 and retries a count; `prefix` stands before their names."""
    if not 0.0 < timeout < math.inf:
        raise ValueError(f"{prefix}timeout={timeout}: must be finite and above 0, in seconds")
    if retries < 0:
        raise ValueError(f"{prefix}retries={retries}: must be 0 or more")


def base_url(url: str, name: str = "url") -> str:
    """Scheme, host and port, without the /v1 that many people add. Raises ValueError with `name` if it is none."""
    base = url.rstrip("/").removesuffix("/v1")
    if urlsplit(base).username or urlsplit(base).password:
        raise ValueError(f"{name} holds a user or a password: leave it out, and name the API key's variable instead")
    if urlsplit(base).query or urlsplit(base).fragment:  # where a key may stand, which must not be repeated
        raise ValueError(f"{name} holds more than an address, behind ? or #: give it like http://localhost:8000")
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
        raise ValueError(f"{name}={url!r}: give the address of a server, like http://localhost:8000")
    return base


def exchange(server: Server, path: str, body: dict | None = None) -> dict:
    """The answer to one request, a JSON object. Raises ServerError, `Transient` if another attempt may help."""
    try:
        with _opener(server).open(_request(server, path, body), timeout=server.timeout) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        raise _refusal(server, path, error) from _origin(server, error)
    except (http.client.HTTPException, OSError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", error)
        late = isinstance(reason, TimeoutError)
        what = f"no answer within {server.timeout:g} s" if late else f"{type(reason).__name__}: {reason}"
        raise Transient(server.masked(f"{server.url}{path}: {what}")) from _origin(server, error)
    return _json_object(server, path, content)


def seconds_asked(headers: Mapping[str, str]) -> float:
    """The wait that a busy server asks for, in seconds; 0 if it names none that can be read.

    `retry-after-ms` counts milliseconds and comes first, for it is the finer one. `Retry-After` is a number of seconds,
    whole or not, or a date (RFC 9110, section 10.2.3).
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("Retry-After")
    seconds = _number(asked)
    if seconds is not None or asked is None:
        return seconds or 0.0
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Followed, a redirect would carry the API key to another host, and make a POST a GET."""

    def redirect_request(self, *arguments, **named) -> None:
        return None


def _opener(server: Server) -> urllib.request.OpenerDirector:
    # A proxy from the environment cannot reach this machine's own loopback.
    proxies = urllib.request.ProxyHandler({} if urlsplit(server.url).hostname in LOOPBACK else None)
    return urllib.request.build_opener(proxies, _NoRedirect)


def _request(server: Server, path: str, body: dict | None) -> urllib.request.Request:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    key = read_api_key(server.api_key_variable)
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(server.url + path, data=data, headers=headers)


def _json_object(server: Server, path: str, content: bytes) -> dict:
    try:
        value = json.loads(content)
    except ValueError as error:
        text = _shown(server, content.decode(errors="replace"))
        raise ServerError(f"{server.url}{path} answered something that is not JSON: {text}", 200) from error
    except RecursionError as error:
        raise ServerError(f"{server.url}{path} answered JSON that is nested too deeply to be read", 200) from error
    if _is_deep(value):
        raise ServerError(f"{server.url}{path} answered JSON of more than {DEEPEST} levels, which no answer has", 200)
    if not isinstance(value, dict):
        raise ServerError(f"{server.url}{path} answered no JSON object: {_shown(server, value)}", 200)
    problem = _error_in(value)
    if problem is None:
        return value
    # Some servers and proxies answer 200 and put the true status into the body.
    code = problem.get("code") if isinstance(problem, dict) else None
    status = code if isinstance(code, int) and 400 <= code < 600 else 200
    said = problem.get("message", problem) if isinstance(problem, dict) else problem
    raise _error(server, path, status, f"200 with an error: {_shown(server, said)}", 0.0)


def _is_deep(value: Any) -> bool:
    """More than DEEPEST levels: to show such a value would exhaust the stack."""
    level = [value]
    for _ in range(DEEPEST):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return False
    return True


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _error_in(value: dict) -> Any:
    """What an answer says of its own failure, as OpenAI ({"error": ..}) or older vLLM ({"object": "error"}) put it."""
    if value.get("object") == "error":
        return value
    return value.get("error") or None


def _refusal(server: Server, path: str, error: urllib.error.HTTPError) -> ServerError:
    with error:
        try:
            said = _shown(server, error.read().decode(errors="replace"))
        except (http.client.HTTPException, OSError):
            said = "(its message broke off)"
    text = f"{error.code} {server.masked(error.reason)}: {said}"
    if 300 <= error.code < 400:
        target = _shown(server, error.headers.get("Location", "another address"))
        text += f"; it points to {target}: give that address, for none is followed with a key"
    return _error(server, path, error.code, text, seconds_asked(error.headers))


def _error(server: Server, path: str, status: int, text: str, wait: float) -> ServerError:
    """The error for one status: `Transient` if the server is only busy; 401 and 403 say what to do about the key."""
    message = f"{server.url}{path} answered {text}{_about_the_key(server, status)}"
    if status not in BUSY and status < 500:
        return ServerError(message, status)
    transient = Transient(message, status)
    transient.wait = wait
    return transient


def _about_the_key(server: Server, status: int) -> str:
    if status not in (401, 403):
        return ""
    if server.api_key_variable is None:
        return "; it wants an API key: put it into an environment variable, and name that as api_key_variable"
    if status == 403:
        return f"; the API key in {server.api_key_variable} does not allow this"
    return f"; it refuses the API key in {server.api_key_variable}: correct that environment variable"


def _shown(server: Server, said: Any) -> str:
    said = server.masked(said)
    return shorten(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))


def _origin(server: Server, error: Exception) -> Exception | None:
    """What an error of ours is raised from: nothing if that repeats the key, for a traceback would print it."""
    return error if server.masked(repr(error)) == repr(error) else None


def _number(text: str | None) -> float | None:
    """A finite number of 0 or above, else None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0.0 <= value < math.inf else None
