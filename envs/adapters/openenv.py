"""A running OpenEnv server as a text world.

Knows the messages of OpenEnv's WebSocket sessions (0.3 to 0.10: ``reset``, ``step``, ``close``). Knows no particular
environment.

The ``openenv`` package itself is not needed: it brings a web server, a web interface and clients of model providers
(113 packages, 460 MB when this was written), and of them a client needs ``websockets`` alone. So this module speaks
the protocol itself.

A task is a seed, ``seed/17``: what ``reset`` with ``seed=17`` gives; a server that ignores seeds has one task. A
session cannot be saved: states are re-entered by replay, each text compared with the recorded one.

Left out: starting containers and Spaces (start the server yourself), tool calls over MCP, experts (a server has none:
demonstrations come from elsewhere), binary observations.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from steca_gym.env import Outcome, World
from steca_gym.errors import ConfigError, WorldError

from .._optional import require
from .reading import ADMISSIBLE_KEYS, FIRST_SEED, Reading, checked_counts, seed_of, seed_tasks

INSTALL = '"steca-gym[openenv]"'

PLACEHOLDER = "{action}"
"""where the agent's text goes in the ``action`` message"""
_MAX_ACTION = 8_000
"""characters"""
_MAX_MESSAGE_BYTES = 100 << 20
# What the server says of a message that is not an action of its environment; anything else is its own failure.
_REFUSALS = {"VALIDATION_ERROR", "INVALID_JSON"}


class OpenEnvWorld(World):
    """One session on an OpenEnv server.

    Args:
        url: of the server, ``http://host:port`` or ``ws://host:port``.
        action: the step's fields, ``"{action}"`` standing for the agent's text, e.g. ``{"message": "{action}"}``.
        name: the world's name in fingerprints.
        version: of the environment and its data; part of the fingerprint, because servers do not tell theirs.
        reading: how observations, rewards and ends are read. An observation that is a mapping may hold ``won``,
            ``goal`` or ``admissible_actions``, in itself or in its metadata.
        reset: further fields of the reset message.
        timeout_s: seconds for connecting and for each answer.
        num_train_tasks: seeds in ``train``.
        num_eval_tasks: seeds in each of ``valid`` and ``test``.

    Raises:
        ConfigError: no place for the agent's text, a wrong URL, or ``websockets`` is missing.
    """

    version = "1"
    can_save: ClassVar[bool] = False

    def __init__(
        self,
        url: str,
        *,
        action: Mapping[str, Any],
        name: str = "openenv",
        version: str = "1",
        reading: Reading | None = None,
        reset: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        num_train_tasks: int = 1000,
        num_eval_tasks: int = 100,
    ) -> None:
        """See the class; connects at the first ``start``."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.netloc:
            raise ConfigError(f"url must be http://host:port or ws://host:port of an OpenEnv server, got {url!r}")
        if PLACEHOLDER not in json.dumps(dict(action)):
            raise ConfigError(f"action must hold {PLACEHOLDER!r} where the agent's text goes, got {dict(action)}")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be > 0 seconds, got {timeout_s}")
        self._connect = require("websockets.sync.client", INSTALL).connect
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        self._url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/ws"
        self._local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._action = dict(action)
        self._reset = dict(reset or {})
        self.name, self.version = name, version
        self._reading = reading or Reading()
        self._timeout_s = timeout_s
        self._num_tasks = checked_counts(num_train_tasks, num_eval_tasks)
        self._connection = contextlib.ExitStack()
        self._session: Any = None
        self._goal = ""
        self._observation: Any = None
        self._info: dict[str, Any] = {}
        self._total = 0.0
        self._over = True

    @property
    def data_hash(self) -> str:
        """Digest of what is sent: the action's and the reset's fields."""
        sent = json.dumps([self._action, self._reset], sort_keys=True, default=str)
        return hashlib.blake2b(sent.encode(), digest_size=4).hexdigest()

    def splits(self) -> tuple[str, ...]:
        """``train``, ``valid`` and ``test``: disjoint seeds."""
        return tuple(FIRST_SEED)

    def task_ids(self, split: str) -> Sequence[str]:
        """The seeds of a split."""
        return seed_tasks(split, self._num_tasks[split])

    def start(self, task_id: str, seed: int) -> Outcome:
        """Reset the session on the task's seed, connecting first if need be; raises WorldError without a server."""
        number = seed_of(task_id)
        code, answer = self._ask({"type": "reset", "data": {**self._reset, "seed": number}})
        if code:
            raise WorldError(f"the OpenEnv server refuses reset(seed={number}): {answer}")
        self._total, self._over = 0.0, False
        _, _, text = self._take(answer)
        self._goal = self._reading.task_text(self._observation, self._info)
        return self._reading.first(text, self._goal, self._info)

    def act(self, action: str) -> Outcome:
        """Step; what the server calls invalid is refused. Raises WorldError where the server fails or is gone."""
        if self._over:
            raise WorldError("act() after the end of the episode; call start() first")
        if len(action) > _MAX_ACTION:
            return self._refused(f"That is too long; an action has at most {_MAX_ACTION} characters.")
        try:
            action.encode()
        except UnicodeEncodeError:
            return self._refused("That is not text: it holds half a character.")
        code, answer = self._ask({"type": "step", "data": _filled(self._action, action)})
        if code in _REFUSALS:
            return self._refused(f"That is not an action here: {str(answer)[:200]}")
        if code:
            self._over = True
            raise WorldError(f"the OpenEnv server fails on {action[:60]!r}: {str(answer)[:300]}")
        reward, done, text = self._take(answer)
        self._total += reward
        self._over = done
        return self._reading.outcome(text, self._info, total=self._total, terminated=done, truncated=False)

    @property
    def goal(self) -> str:
        """The task's text, if the server or the reading tells one."""
        return self._goal

    @property
    def task_type(self) -> str:
        """What the observation's ``task_type`` says."""
        return str(self._info.get("task_type", ""))

    def admissible_actions(self) -> tuple[str, ...] | None:
        """What the observation lists, if it does."""
        listed = next((self._info[key] for key in ADMISSIBLE_KEYS if key in self._info), None)
        return None if listed is None else () if self._over else tuple(dict.fromkeys(map(str, listed)))

    def close(self) -> None:
        """End the session."""
        self._over = True
        if self._session is not None:
            with contextlib.suppress(Exception):
                self._session.send(json.dumps({"type": "close"}))
            self._hang_up()

    # -- inside --------------------------------------------------------------------------------------------

    def _refused(self, text: str) -> Outcome:
        return self._reading.outcome(text, {}, total=self._total, terminated=False, truncated=False, valid=False)

    def _take(self, answer: Mapping[str, Any]) -> tuple[float, bool, str]:
        """Reward, end and text of an answer; what it tells beside is kept."""
        self._observation = answer.get("observation", "")
        told = self._observation if isinstance(self._observation, Mapping) else {}
        nested = told.get("metadata")
        self._info = {
            **told,
            **(nested if isinstance(nested, Mapping) else {}),
            **(answer.get("metadata") or {}),
        }
        text = self._reading.text(self._observation, self._info)
        return float(answer.get("reward") or 0.0), bool(answer.get("done", False)), text

    def _ask(self, message: Mapping[str, Any]) -> tuple[str, Any]:
        """An error's code (empty: none) and the answer's data, or the error's message."""
        try:
            if self._session is None:
                # Proxies of the environment are for servers elsewhere.
                proxy: dict[str, Any] = {"proxy": None} if self._local else {}
                connecting = self._connect(
                    self._url, open_timeout=self._timeout_s, max_size=_MAX_MESSAGE_BYTES, **proxy
                )
                self._session = self._connection.enter_context(connecting)
            self._session.send(json.dumps(message))
            answer = json.loads(self._session.recv(timeout=self._timeout_s))
        except Exception as error:  # closed, refused, timed out, not a WebSocket server: the session is lost either way
            self._hang_up()
            self._over = True
            raise WorldError(
                f"no answer from the OpenEnv server at {self._url} ({type(error).__name__}: {str(error)[:200]}); "
                "start it, and give its url"
            ) from error
        data = answer.get("data") or {}
        if answer.get("type") == "error":
            return str(data.get("code") or "UNKNOWN"), data.get("errors") or data.get("message")
        return "", data

    def _hang_up(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()
        self._session = None


def _filled(template: Any, action: str) -> Any:
    """The template with the agent's text in its places."""
    if isinstance(template, str):
        return template.replace(PLACEHOLDER, action)
    if isinstance(template, Mapping):
        return {key: _filled(value, action) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [_filled(value, action) for value in template]
    return template
