"""Send conversations to a chat endpoint, several at once, with retries and limits.

What a server sends is not trusted: its size and its time are limited, redirects to other hosts are not followed, and
the API key is removed from every message.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
import math
import os
import re
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from steca_gym.agents.openai.answers import Completion, MalformedAnswer, advice, one_line, read_completion

from steca_gym.agent import Message, Sampling
from steca_gym.errors import AgentError, ConfigError
from steca_gym.redaction import guard_loggers, hide, holds_credentials, remove, secret_setting

_RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_STATUS_OF_UNKNOWN_FIELDS = frozenset({400, 422})
_MAX_ERROR_BYTES = 1 << 16
_MAX_REDIRECTS = 3
# The HTTP library logs headers that it receives, and addresses.
guard_loggers("httpx", *(f"httpcore.{n}" for n in ("connection", "http11", "http2", "proxy", "socks")))
WAKE_S = 0.5
"""seconds after which a waiting thread looks for interrupts, which another thread may have received"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """Where an endpoint is and how it is asked."""

    base_url: str
    """e.g. ``http://127.0.0.1:8000/v1``; a query such as ``?api-version=1`` is kept; credentials are refused"""
    model: str
    """the name by which the server knows the model"""
    api_key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the key; if it is unset, no key is sent"""
    max_in_flight: int = 16
    """maximum number of concurrent requests, >= 1"""
    max_retries: int = 4
    """further attempts after a connection error, a timeout, a malformed answer or a status that may pass (429, 5xx)"""
    timeout_s: float = 60.0
    """seconds per attempt, from connecting to the last byte"""
    backoff_s: float = 0.5
    """seconds before the first retry; doubled each time, and at least the server's Retry-After (up to 60 s)"""
    send_seed: bool = True
    """send a seed with each request (False for servers that refuse unknown fields)"""
    max_tokens_field: str = "max_tokens"
    """name of the field for the maximum number of new tokens, e.g. ``max_completion_tokens``; empty: not sent"""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """further fields of every request, e.g. ``{"top_k": 20}``; they take precedence, and null removes a field"""
    return_token_ids: bool = True
    """ask for the sampled ids (vLLM's field ``return_token_ids``); a server that refuses the field is asked without"""
    max_answer_bytes: int = 16 << 20
    """a longer answer is refused"""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        _check_url(self.base_url)
        if not self.model or not isinstance(self.model, str):
            raise ConfigError(f"model must name a model of the endpoint, got {self.model!r}")
        for name, least in (("max_in_flight", 1), ("max_retries", 0), ("max_answer_bytes", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r}")
        if not (0 < self.timeout_s < math.inf and 0 <= self.backoff_s < math.inf):
            raise ConfigError(
                f"timeout_s must be > 0 and backoff_s >= 0 seconds, got {self.timeout_s} and {self.backoff_s}"
            )
        if not isinstance(self.api_key_env, str) or not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise ConfigError(  # its value may be the key itself, so it is not shown
                "api_key_env must be the name of an environment variable such as OPENAI_API_KEY, not the key itself"
            )
        try:
            json.dumps(_plain(self.extra_body), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"extra_body must be a mapping of JSON values: {error}") from None
        secret = secret_setting(_plain(self.extra_body), "extra_body")
        if secret:
            raise ConfigError(f"{secret} must not hold a key: put it into the environment variable of api_key_env")


def _check_url(url: str) -> None:
    """Refuse a base_url that cannot work or holds credentials; no message repeats what may be secret."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        shown = repr(url) if isinstance(url, str) and "@" not in url and "?" not in url else "something else"
        raise ConfigError(f"base_url must begin with http:// or https://, got {shown}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("base_url is not a valid URL; expected e.g. http://127.0.0.1:8000/v1") from None
    if holds_credentials(url):
        raise ConfigError(
            f"base_url for host {host!r} must not contain a user, password or key; put the key into the environment "
            "variable that api_key_env names"
        )
    if not host or parts.fragment or any(c.isspace() or not c.isprintable() for c in url):
        raise ConfigError("base_url must name a host and contain neither blanks nor a fragment (#)")


def _plain(value: Any) -> Any:
    """Configuration containers as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(v) for v in value]
    return value


class _RefusedRequest(AgentError):
    """A request that the server refuses, with its status and the beginning of what it said."""

    def __init__(self, message: str, status: int, told: bytes) -> None:
        super().__init__(message)
        self.status, self.told = status, told


class _Refused(Exception):
    """An answer that another attempt would not change; its text has been cleaned."""


_T = TypeVar("_T")


class _Loop:
    """One event loop in a daemon thread, shared by all endpoints of a process; interrupts never wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # a forked process has no thread
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="steca-endpoint", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)


_LOOP = _Loop()


class Endpoint:
    """Sends conversations and receives texts, several at once.

    Args:
        settings: where and how.
        sleep: waits between attempts (a test passes its own); by default without blocking other requests.
    """

    def __init__(self, settings: EndpointSettings, sleep: Callable[[float], None] | None = None) -> None:
        """See the class; nothing is sent yet."""
        self.settings, self._sleep = settings, sleep
        parts = urllib.parse.urlsplit(settings.base_url)
        self._url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions").geturl()
        self._shown_url = parts._replace(path=parts.path.rstrip("/") + "/chat/completions", query="").geturl()
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self.num_retries = 0
        """attempts beyond the first, so far"""
        self.unknown_fields: set[str] = set()
        """fields of requests that the server refuses; they are no longer sent"""
        self._knows_fields = (
            False  # it has answered a request with optional fields, so it refuses others for their own sake
        )

    def complete(
        self, asked: Sequence[tuple[Sequence[Message], Sampling, int]], *, extra: Mapping[str, Any] | None = None
    ) -> list[Completion]:
        """Answer (messages, sampling, seed) in order; raises AgentError when one cannot be answered."""
        futures = [self.start(*a, extra=extra) for a in asked]
        try:
            while wait(futures, timeout=WAKE_S).not_done:
                pass
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def complete_one(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Completion:
        """Answer one conversation, with retries; raises AgentError when it cannot be answered."""
        return self.complete([(messages, sampling, seed)])[0]

    def start(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: Sampling,
        seed: int,
        *,
        extra: Mapping[str, Any] | None = None,
        optional: Mapping[str, Any] | None = None,
    ) -> Future[Completion]:
        """Begin to answer one conversation; raises ConfigError for a key that cannot be sent.

        Args:
            messages: the conversation; a mapping is sent as it is.
            sampling: temperature, maximum number of new tokens, top_p.
            seed: sent along, if the settings say so.
            extra: further fields of this request.
            optional: fields that not every server knows. A request that is refused with them is sent once more without,
                and where that helps they are not sent again.
        """
        s = self.settings
        body: dict[str, Any] = {
            "model": s.model,
            "messages": [m.as_dict() if isinstance(m, Message) else dict(m) for m in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if s.max_tokens_field:
            body[s.max_tokens_field] = sampling.max_new_tokens
        if s.send_seed:
            body["seed"] = seed
        known = {name: value for name, value in (optional or {}).items() if name not in self.unknown_fields}
        body.update({**known, **(extra or {}), **_plain(s.extra_body)})
        body = {name: value for name, value in body.items() if value is not None}
        droppable = [name for name in known if name not in s.extra_body and name not in (extra or {})]
        return _LOOP.run(self._answer(body, self._key(), droppable))

    def _key(self) -> str:
        key = os.environ.get(self.settings.api_key_env, "").strip()
        if not all("!" <= letter <= "~" for letter in key):
            raise ConfigError(
                f"the key in the environment variable {self.settings.api_key_env} contains a line break, a blank or "
                "another character that no HTTP header can carry; set it again"
            )
        hide(key)
        return key

    async def _answer(self, body: dict[str, Any], key: str, optional: Sequence[str]) -> Completion:
        """Send a request; where it is refused, once more without its optional fields."""
        left_out: list[str] = []
        async with self._slots:
            self._open()
            while True:
                data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
                try:
                    completion = await self._attempts(data, key)
                except _RefusedRequest as error:
                    told = error.told.decode("utf-8", "replace")
                    named = [name for name in optional if name in told]
                    if not named and not self._knows_fields:
                        named = list(optional)
                    if not named or error.status not in _STATUS_OF_UNKNOWN_FIELDS:
                        raise AgentError(str(error)) from None
                    left_out += named
                    optional = [name for name in optional if name not in named]
                    body = {name: value for name, value in body.items() if name not in named}
                    continue
                self.unknown_fields.update(left_out)
                self._knows_fields = self._knows_fields or bool(optional)
                return completion

    async def _attempts(self, data: bytes, key: str) -> Completion:
        """Send a request until it is answered; raises AgentError."""
        s = self.settings
        problem = ""
        for attempt in range(s.max_retries + 1):
            self.num_retries += bool(attempt)
            pause = s.backoff_s * 2**attempt
            try:
                async with asyncio.timeout(s.timeout_s):
                    status, headers, raw = await self._post(data, key)
                if status < 300:
                    return _without_key(read_completion(raw), key)
                problem = f"status {status}: {one_line(raw, key)}"
                if status not in _RETRIED_STATUS:
                    raise _RefusedRequest(
                        f"{self._shown_url} refused a request with {problem}; {advice(raw)}", status, raw
                    )
                pause = max(pause, _seconds(headers.get("retry-after")))
            except TimeoutError:
                problem = f"timed out after {s.timeout_s:g} s"
            except MalformedAnswer as error:
                problem = f"an answer that is no chat completion ({one_line(str(error).encode(), key)})"
            except _Refused as error:
                raise AgentError(f"{self._shown_url} {error}") from None
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                problem = one_line((str(error) or type(error).__name__).encode(errors="replace"), key)
            if attempt < s.max_retries:
                if self._sleep is not None:
                    self._sleep(pause)
                else:
                    await asyncio.sleep(pause)
        raise AgentError(
            f"{self._shown_url} did not answer in {s.max_retries + 1} attempts; the last problem: {problem}; "
            "check that the server runs and that base_url is right"
        )

    async def _post(self, data: bytes, key: str) -> tuple[int, httpx.Headers, bytes]:
        """Send a request; returns status, headers and at most ``max_answer_bytes`` of the body."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = httpx.URL(self._url)
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._open().stream("POST", url, content=data, headers=headers) as response:
                if not 300 <= response.status_code < 400:
                    limit = self.settings.max_answer_bytes if response.status_code < 300 else _MAX_ERROR_BYTES
                    raw = b""
                    async for chunk in response.aiter_raw():
                        raw += chunk
                        if len(raw) > limit:
                            if response.status_code >= 300:
                                break
                            raise _Refused(f"sent an answer of more than {limit} bytes; raise max_answer_bytes")
                    return response.status_code, response.headers, raw
                target = url.join(response.headers.get("location", ""))
                same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
                if not same or response.status_code not in (307, 308):
                    host = one_line(target.host.encode(), key)
                    raise _Refused(
                        f"redirects with status {response.status_code} to host {host!r}; the key is not sent there: "
                        "set base_url to the final address"
                    )
                url = target
        raise _Refused(f"redirects more than {_MAX_REDIRECTS} times")

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            many = self.settings.max_in_flight
            self._client = httpx.AsyncClient(
                timeout=None,  # the whole attempt has a limit
                limits=httpx.Limits(max_connections=many, max_keepalive_connections=many),
                trust_env=not _is_loopback(httpx.URL(self._url).host),  # a proxy cannot reach this machine
                verify=self._url.startswith("https://"),  # loading certificates takes a while
            )
            weakref.finalize(self, _close, self._client).atexit = False
        return self._client


def _without_key(answer: Completion, key: str) -> Completion:
    """A turn is stored and trained on, so a key that a server puts into one is removed; its token ids would keep it."""
    text = remove(answer.text, [key]) if key else answer.text
    if text == answer.text:
        return answer
    return dataclasses.replace(answer, text=text, token_ids=None, log_probs=None, end_log_prob=None)


def _close(client: httpx.AsyncClient) -> None:
    _LOOP.run(client.aclose())


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(header: str | None) -> float:
    try:
        seconds = float(header) if header else 0.0
    except ValueError:
        return 0.0
    return min(60.0, seconds) if seconds >= 0 else 0.0


def make_endpoint(base_url: str, model: str, endpoint: Endpoint | None, options: Mapping[str, Any]) -> Endpoint:
    """The endpoint that was given, or one made from the settings; raises ConfigError for unknown options."""
    if endpoint is not None:
        return endpoint
    known = EndpointSettings.__dataclass_fields__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"endpoint settings: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return Endpoint(EndpointSettings(base_url=base_url, model=model, **options))
