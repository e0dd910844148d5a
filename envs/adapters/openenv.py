"""A running OpenEnv server as a text world.

The module speaks the messages of OpenEnv's WebSocket sessions itself (versions 0.3 to 0.10: ``reset``, ``step``,
``close``). The ``openenv`` package is not needed: it installs a web server, a web interface and clients of model
providers (113 packages, 460 MB when this was written), while a client needs ``websockets`` alone.

A task is a seed: ``seed/17`` is what ``reset`` with ``seed=17`` gives; a server that ignores seeds has one task. A
session cannot be saved, so states are re-entered by replay, and each text is compared with the recorded one.

Not supported: starting containers and Spaces (start the server yourself), tool calls over MCP, binary observations, and
experts (a server has none: demonstrations come from elsewhere).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from steca_gym.env import Outcome, World
from steca_gym.errors import ConfigError, WorldError
from steca_gym.redaction import holds_credentials

from .._optional import require
from .reading import FIRST_SEED, Reading, admissible_in, checked_counts, seed_of, seed_tasks, shown

INSTALL = '"steca-gym[openenv]"'

PLACEHOLDER = "{action}"
"""where the agent's text goes in the ``action`` message"""
_MAX_ACTION = 8_000
"""characters"""
_MAX_MESSAGE_BYTES = 100 << 20
# Codes for a message that is no action of the environment; any other error is a failure of the server.
_REFUSALS = {"VALIDATION_ERROR", "INVALID_JSON"}


class OpenEnvWorld(World):
    """One session on an OpenEnv server.

    Args:
        url: URL of the server, ``http://host:port`` or ``ws://host:port``.
        action: fields of the step message; ``"{action}"`` stands for the agent's text, as in
            ``{"message": "{action}"}``.
        name: name of the world in fingerprints.
        version: version of the environment and its data; part of the fingerprint, because servers do not report theirs.
        reading: how observations, rewards and ends are read. An observation that is a mapping may hold ``won``,
            ``goal`` or ``admissible_actions``, in itself or in its metadata.
        reset: further fields of the reset message.
        timeout_s: seconds for connecting and for each answer, > 0.
        num_train_tasks: number of seeds in ``train``.
        num_eval_tasks: number of seeds in each of ``valid`` and ``test``.

    Raises:
        ConfigError: a setting of the wrong type, no place for the agent's text, a wrong URL, or ``websockets`` is
            missing.
    """

    version = "1"
    can_save: ClassVar[bool] = False
    score_may_fall: ClassVar[bool] = True

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
        parts = _url_parts(url)
        fields, more = _fields("action", action), _fields("reset", reset if reset is not None else {})
        if PLACEHOLDER not in json.dumps(fields):
            raise ConfigError(f"action must hold {PLACEHOLDER!r} where the agent's text goes, got {shown(fields)}")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < math.inf:
            raise ConfigError(f"timeout_s must be a finite number of seconds > 0, got {shown(timeout_s)}")
        for setting, value in (("name", name), ("version", version)):
            if not isinstance(value, str):
                raise ConfigError(f"{setting} must be text, got {shown(value)}")
        self._connect = require("websockets.sync.client", INSTALL).connect
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        self._url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/ws"
        self._local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._action, self._reset = fields, more
        self.name, self.version = name, version
        self._reading = reading or Reading()
        self._timeout_s = timeout_s
        self._num_tasks = checked_counts(num_train_tasks, num_eval_tasks)
        self._connection = contextlib.ExitStack()
        self._session: Any = None
        self._goal = ""
        self._observation: Any = None
        self._info: dict[str, Any] = {}
        self._admissible: tuple[str, ...] | None = None
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
        """Reset the session with the task's seed; connects first if needed. Raises WorldError without a server."""
        number = seed_of(task_id)
        code, answer = self._ask({"type": "reset", "data": {**self._reset, "seed": number}})
        if code:
            raise WorldError(f"the OpenEnv server refuses reset(seed={number}): {code}: {shown(answer)}")
        self._total, self._over = 0.0, False
        _, _, text = self._take(answer)
        self._goal = _whole_characters(self._reading.task_text(self._observation, self._info))
        return self._reading.first(text, self._goal, self._info)

    def act(self, action: str) -> Outcome:
        """Step; an action that the server calls invalid is refused. Raises WorldError where the server fails."""
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
            return self._refused(f"That is not an action here: {_whole_characters(str(answer)[:200])}")
        if code:
            self._over = True
            raise WorldError(f"the OpenEnv server fails on {action[:60]!r}: {code}: {shown(answer)}")
        reward, done, text = self._take(answer)
        self._total += reward
        self._over = done
        return self._reading.outcome(text, self._info, total=self._total, terminated=done, truncated=False)

    @property
    def goal(self) -> str:
        """The task's text, if the server or the reading gives one."""
        return self._goal

    @property
    def task_type(self) -> str:
        """The observation's ``task_type``, if it is a text."""
        found = self._info.get("task_type")
        return _whole_characters(found) if isinstance(found, str) else ""

    def admissible_actions(self) -> tuple[str, ...] | None:
        """The actions that the observation lists, if it does."""
        return () if self._over and self._admissible is not None else self._admissible

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
        """Reward, end and text of an answer; the rest is kept for the properties.

        Raises WorldError where the answer is not of the expected shape; the episode is then over.
        """
        over, self._over = self._over, True
        observation = answer.get("observation", "")
        beside = observation if isinstance(observation, Mapping) else {}
        nested, metadata = beside.get("metadata"), answer.get("metadata")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise self._wrong("metadata", "an object", metadata)
        info = {**beside, **(nested if isinstance(nested, Mapping) else {}), **(metadata or {})}
        reward, done = answer.get("reward"), answer.get("done")
        try:
            number = 0.0 if reward is None else float(reward)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if isinstance(reward, str) or not math.isfinite(number):
            raise self._wrong("reward", "a finite number", reward)
        if done is not None and done not in (True, False):
            raise self._wrong("done", "true or false", done)
        try:
            text = self._reading.text(observation, info)
            admissible = admissible_in(info)
        except WorldError:
            raise
        except Exception as error:  # a function of the user's, or an object nested too deeply
            raise WorldError(
                f"an observation of the OpenEnv server cannot be read ({type(error).__name__}: {shown(str(error))}); "
                "check describe and observation_field"
            ) from error
        self._observation, self._info, self._over = observation, info, over
        self._admissible = None if admissible is None else tuple(map(_whole_characters, admissible))
        return number, bool(done), _whole_characters(text)

    def _wrong(self, field: str, expected: str, got: Any) -> WorldError:
        return WorldError(
            f"the OpenEnv server at {self._url} answers with {field}={shown(got)}, expected {expected}; is it an "
            "OpenEnv server of version 0.3 to 0.10?"
        )

    def _ask(self, message: Mapping[str, Any]) -> tuple[str, Any]:
        """(code, message) of an error, or ("", data) of an answer; raises WorldError for anything else."""
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
                f"no answer from the OpenEnv server at {self._url} ({type(error).__name__}: {shown(str(error))}); "
                "start it, and give its url"
            ) from error
        self._over, over = True, self._over
        if not isinstance(answer, Mapping):
            raise self._wrong("message", "an object with type and data", answer)
        data = {} if answer.get("data") is None else answer["data"]
        if not isinstance(data, Mapping):
            raise self._wrong("data", "an object", data)
        self._over = over
        if answer.get("type") == "error":
            code = data.get("code")
            return code if isinstance(code, str) and code else "UNKNOWN", data.get("errors") or data.get("message")
        return "", data

    def _hang_up(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()
        self._session = None


def _url_parts(url: Any) -> SplitResult:
    """The parts of a server's URL; raises ConfigError."""
    if isinstance(url, str) and holds_credentials(url):
        raise ConfigError("url must not contain a user, password or key: an OpenEnv server knows none")
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is not None and parts.scheme in ("http", "https", "ws", "wss") and parts.hostname:
            _ = parts.port  # raises where it is no number
            return parts
    except ValueError:
        pass
    raise ConfigError(f"url must be http://host:port or ws://host:port of an OpenEnv server, got {shown(url)}")


def _fields(name: str, value: Any) -> dict[str, Any]:
    """Fields of a message; raises ConfigError for what cannot be sent."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} must be a mapping of field names to values, got {shown(value)}")
    fields = {key: _plain(item) for key, item in value.items()}
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} cannot be sent as JSON ({shown(str(error))}), got {shown(fields)}") from error
    return fields


def _plain(value: Any) -> Any:
    """Mappings and lists of a configuration as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return [_plain(item) for item in value]
    return value


def _whole_characters(text: str) -> str:
    """The text with halves of characters, which JSON can hold and tokenizers refuse, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _filled(template: Any, action: str) -> Any:
    """The template with the agent's text in its places."""
    if isinstance(template, str):
        return template.replace(PLACEHOLDER, action)
    if isinstance(template, Mapping):
        return {key: _filled(value, action) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [_filled(value, action) for value in template]
    return template
