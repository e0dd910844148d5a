"""An OpenEnv server of any of our worlds: many sessions in one process, with snapshots.

Speaks the WebSocket messages of OpenEnv servers, version 0.3 to 0.10 (``reset``, ``step``, ``state``, ``close``), and
three more: ``snapshot``, ``restore`` and ``drop``; ``docs/interop/openenv.md`` describes them. Each connection to
``/ws`` is a session with an environment and a thread of its own.

>>> with OpenEnvServer(functools.partial(make_env, "household"), port=0) as server:
...     print(server.url)

There is no authentication: keep it on the loopback interface or behind a proxy that has some.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import secrets
import signal
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from steca_gym.env import Snapshot, TextEnv
from steca_gym.errors import ConfigError, DataError, StecaError, one_line

__all__ = ["OpenEnvServer"]

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE_BYTES = 1 << 20
_RESET_FIELDS = ("seed", "episode_id", "task_id", "split")
_TEXT = {"type": "string"}
_SCHEMA = {
    "action": {
        "title": "TextAction",
        "type": "object",
        "properties": {"action": _TEXT, "metadata": {"type": "object"}},
        "required": ["action"],
        "additionalProperties": False,
    },
    "observation": {
        "title": "TextObservation",
        "type": "object",
        "properties": {
            **dict.fromkeys(("text", "goal", "task_id", "task_type", "fingerprint"), _TEXT),
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            **dict.fromkeys(("won", "valid"), {"type": "boolean"}),
            "num_steps": {"type": "integer", "minimum": 0},
            "admissible_actions": {"type": "array", "items": _TEXT},
        },
        "required": ["text"],
    },
    "state": {
        "title": "State",
        "type": "object",
        "properties": {"episode_id": {"type": ["string", "null"]}, "step_count": {"type": "integer", "minimum": 0}},
    },
}
_MESSAGES = ("reset", "step", "state", "snapshot", "restore", "drop", "close")


class _Refused(Exception):
    """A message that cannot be answered; its code and text go to the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OpenEnvServer:
    """Serves sessions until it is closed.

    Args:
        make: makes one environment; called once for each session.
        host: interface to listen on.
        port: TCP port in [0, 65535]; 0 takes a free one.
        max_sessions: sessions at a time, >= 1; further ones are refused.
        max_snapshots: snapshots that one session may hold, >= 1.

    Raises:
        ConfigError: a setting that cannot work, a port in use (when it starts), or ``websockets`` is missing.
    """

    def __init__(
        self,
        make: Callable[[], TextEnv],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        max_sessions: int = 256,
        max_snapshots: int = 10_000,
    ) -> None:
        """See the class; ``start`` or ``serve`` listens."""
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise ConfigError(f"port must be a whole number in [0, 65535], got {port!r}")
        for name, value in (("max_sessions", max_sessions), ("max_snapshots", max_snapshots)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
        try:
            import websockets.asyncio.server as websockets_server
            from websockets.exceptions import ConnectionClosed
        except ImportError as error:
            raise ConfigError('an OpenEnv server needs websockets: pip install "steca-gym[openenv]"') from error
        self._websockets, self._closed = websockets_server, ConnectionClosed
        self._make = make
        self.host, self.port = host, port
        self.max_sessions, self.max_snapshots = max_sessions, max_snapshots
        self.num_sessions = 0
        """sessions that are open now"""
        self._snapshots: dict[str, Snapshot] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """``http://host:port``, as OpenEnv's clients take it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    # -- running -------------------------------------------------------------------------------------------

    async def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Listen until ``stop`` is called; ``ready`` is called once the port is open.

        Raises ConfigError if the port or the host cannot be used.
        """
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            # A page in a browser sends its origin, a client does not: pages must not play on a person's loopback.
            serving = await self._websockets.serve(
                self._session,
                self.host,
                self.port,
                max_size=_MAX_MESSAGE_BYTES,
                origins=[None],
                process_request=self._http,
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"port {self.port} of {self.host} is in use; choose another with --port") from error
            raise ConfigError(f"cannot listen on {self.host} port {self.port}: {error.strerror or error}") from error
        async with serving:
            self.port = next(iter(serving.sockets)).getsockname()[1]
            ready()
            await self._stop.wait()

    def serve_until_signal(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve in the main thread until Ctrl-C or SIGTERM; open sessions are closed."""

        async def run() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop)
            await self.serve(ready)

        asyncio.run(run())

    def stop(self) -> None:
        """Close all sessions and let ``serve`` return; from any thread."""
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._stop.set)

    def __enter__(self) -> OpenEnvServer:
        """Serve from a thread."""
        opened, failure = threading.Event(), list[BaseException]()

        def run() -> None:
            try:
                asyncio.run(self.serve(opened.set))
            except BaseException as error:
                failure.append(error)
                opened.set()

        self._thread = threading.Thread(target=run, daemon=True, name="openenv-server")
        self._thread.start()
        opened.wait()
        if failure:
            raise failure[0]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for the thread."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    # -- sessions ------------------------------------------------------------------------------------------

    def _http(self, connection: Any, request: Any) -> Any:
        """Answer what is no WebSocket: ``/health`` and ``/schema``, and 404 for other paths."""
        path = request.path.partition("?")[0]
        if path == "/ws":
            return None
        pages: dict[str, Any] = {"/health": {"status": "healthy"}, "/schema": _SCHEMA}
        if path in pages:
            response = connection.respond(HTTPStatus.OK, json.dumps(pages[path]))
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
            return response
        return connection.respond(
            HTTPStatus.NOT_FOUND, "An OpenEnv server: sessions are at /ws, and /health answers.\n"
        )

    async def _session(self, connection: Any) -> None:
        if self.num_sessions >= self.max_sessions:
            text = f"all {self.max_sessions} sessions are taken; try again later"
            await connection.send(_error("CAPACITY_REACHED", text))
            return
        self.num_sessions += 1
        loop = asyncio.get_running_loop()
        # A world may take seconds (a Java machine that starts), and it must not keep the other sessions waiting.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="openenv-session") as thread:
            session = _Session(self)
            try:
                async for raw in connection:
                    answer = await loop.run_in_executor(thread, session.answer, raw)
                    if answer is None:
                        break
                    await connection.send(answer)
            except self._closed:
                pass
            finally:
                self.num_sessions -= 1
                await loop.run_in_executor(thread, session.close)

    # -- snapshots, shared by the sessions -----------------------------------------------------------------

    def _keep(self, snapshot: Snapshot) -> str:
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._snapshots[key] = snapshot
        return key

    def _snapshot(self, key: Any) -> Snapshot:
        with self._lock:
            found = self._snapshots.get(key) if isinstance(key, str) else None
        if found is None:
            raise _Refused("VALIDATION_ERROR", f"no snapshot {key!r:.60}; it was dropped, or its session has ended")
        return found

    def _forget(self, key: str) -> None:
        with self._lock:
            self._snapshots.pop(key, None)


class _Session:
    """One connection: an environment, made at the first message that needs it, and the snapshots it has taken."""

    def __init__(self, server: OpenEnvServer) -> None:
        self._server = server
        self._env: TextEnv | None = None
        self._episode_id = ""
        self._info: dict[str, Any] = {}
        self._keys: set[str] = set()

    def answer(self, raw: str | bytes) -> str | None:
        """The answer to a message, as JSON; None to end the session."""
        try:
            try:
                message = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise _Refused("INVALID_JSON", f"the message is not JSON: {error}") from error
            if not isinstance(message, Mapping):
                raise _Refused("VALIDATION_ERROR", "a message must be an object with type and data")
            kind, data = message.get("type"), message.get("data")
            if kind == "close":
                return None
            if kind not in _MESSAGES:
                raise _Refused("UNKNOWN_TYPE", f"unknown message type {kind!r:.60}; known: {', '.join(_MESSAGES)}")
            data = {} if data is None else data
            if not isinstance(data, Mapping):
                raise _Refused("VALIDATION_ERROR", f"data must be an object, got {data!r:.60}")
            return json.dumps(getattr(self, f"_{kind}")(data))
        except _Refused as refused:
            return _error(refused.code, str(refused))
        except (ConfigError, DataError) as error:
            return _error("VALIDATION_ERROR", " ".join(str(error).split()))
        except StecaError as error:
            return _error("EXECUTION_ERROR", " ".join(str(error).split()))
        except Exception as error:  # a world's defect ends neither the session nor the server
            _LOG.warning("a session failed: %s", one_line(error))
            return _error("EXECUTION_ERROR", one_line(error))

    def close(self) -> None:
        """Release the environment and the snapshots."""
        for key in self._keys:
            self._server._forget(key)
        if self._env is not None:
            with contextlib.suppress(Exception):
                self._env.close()

    # -- messages ------------------------------------------------------------------------------------------

    def _reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        seed, episode_id = data.get("seed"), data.get("episode_id")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise _Refused("VALIDATION_ERROR", f"seed must be a whole number >= 0, got {seed!r:.60}")
        for key in ("episode_id", "task_id", "split"):
            if not isinstance(data.get(key), str | None):
                raise _Refused("VALIDATION_ERROR", f"{key} must be text, got {data[key]!r:.60}")
        if unknown := sorted(set(map(str, data)) - set(_RESET_FIELDS)):
            raise _Refused("VALIDATION_ERROR", f"reset takes {', '.join(_RESET_FIELDS)}, got {unknown[0]!r:.60}")
        options = {key: data[key] for key in ("task_id", "split") if data.get(key) is not None}
        text, self._info = self._made().reset(seed=seed, options=options)
        self._episode_id = episode_id or uuid.uuid4().hex
        return self._observation(text, reward=None, over=self._is_over())

    def _step(self, data: Mapping[str, Any]) -> dict[str, Any]:
        action = data.get("action")
        if not isinstance(action, str) or set(data) - {"action", "metadata"}:
            raise _Refused("VALIDATION_ERROR", f'a step\'s data must be {{"action": "TEXT"}}, got {dict(data)!r:.120}')
        text, reward, terminated, truncated, self._info = self._made().step(action)
        return self._observation(text, reward=float(reward), over=terminated or truncated)

    def _state(self, data: Mapping[str, Any]) -> dict[str, Any]:
        shown = {key: self._info.get(key) for key in ("task_id", "task_type", "score", "won", "fingerprint")}
        state = {"episode_id": self._episode_id or None, "step_count": int(self._info.get("num_steps", 0)), **shown}
        return {"type": "state", "data": state}

    def _snapshot(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if len(self._keys) >= self._server.max_snapshots:
            text = f"this session holds {self._server.max_snapshots} snapshots, its limit; drop some"
            raise _Refused("CAPACITY_REACHED", text)
        snapshot = self._made().snapshot()
        key = self._server._keep(snapshot)
        self._keys.add(key)
        return {
            "type": "snapshot",
            "data": {
                "snapshot": key,
                "task_id": snapshot.task_id,
                "step_count": snapshot.num_steps,
                "fingerprint": snapshot.fingerprint,
            },
        }

    def _restore(self, data: Mapping[str, Any]) -> dict[str, Any]:
        snapshot = self._server._snapshot(data.get("snapshot"))
        text, self._info = self._made().restore(snapshot)
        self._episode_id = self._episode_id or uuid.uuid4().hex
        return self._observation(text, reward=None, over=self._is_over())

    def _drop(self, data: Mapping[str, Any]) -> dict[str, Any]:
        key = data.get("snapshot")
        if not isinstance(key, str) or key not in self._keys:
            raise _Refused("VALIDATION_ERROR", f"no snapshot {key!r:.60} of this session")
        self._keys.discard(str(key))
        self._server._forget(str(key))
        return {"type": "dropped", "data": {"snapshot": key}}

    # -- inside --------------------------------------------------------------------------------------------

    def _made(self) -> TextEnv:
        if self._env is None:
            self._env = self._server._make()
        return self._env

    def _is_over(self) -> bool:
        snapshot = self._made().snapshot()
        return snapshot.last.over or snapshot.num_steps >= self._made().horizon

    def _observation(self, text: str, *, reward: float | None, over: bool) -> dict[str, Any]:
        shown = ("goal", "task_id", "task_type", "score", "won", "valid", "num_steps", "fingerprint")
        observation = {"text": text, **{key: self._info[key] for key in shown}}
        if (listed := self._info.get("admissible_actions")) is not None:
            observation["admissible_actions"] = list(listed)
        return {"type": "observation", "data": {"observation": observation, "reward": reward, "done": over}}


def _error(code: str, message: str) -> str:
    return json.dumps({"type": "error", "data": {"code": code, "message": message}})
