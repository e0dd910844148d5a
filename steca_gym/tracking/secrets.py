"""Takes secrets out of what leaves the machine: settings that a tracker stores or uploads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"

# Names of settings that hold a secret. "tokens" are counted, and "..._env" names an environment variable.
_NAME = re.compile(
    r"(?:^|[_\-.])(?:api_?key|key|secret|passw(?:or)?d|passphrase|token|auth(?:orization)?|credentials?|cookie|"
    r"signature)s?$|api_?key|secret|passw(?:or)?d|private_?key|access_?key|auth_?token|access_?token",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?:^|_)tokens$|_env$", re.IGNORECASE)

# Values that are secrets whatever their setting is called.
_VALUES = re.compile(
    r"\bsk-[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bxox[abprs]-[\w-]{10,}|"
    r"\bAKIA[0-9A-Z]{16}\b|\bwandb_v1_\w{20,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*|(?<=[Bb]earer )\S+"
)
_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=[?&])([\w.-]*(?:key|token|secret|passw\w*|sig|auth\w*)[\w.-]*=)[^&\s#]+", re.IGNORECASE)
_MIN_CHARS = 8
"""shorter values of environment variables are too likely to occur by chance"""


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings in which every secret is ``[hidden]``.

    Hidden are values of settings whose name says so (``api_key``, ``headers.Authorization``), values that look like a
    key, credentials inside URLs, and values of environment variables whose name says so.
    """
    found = _clean(dict(settings), _environment_secrets())
    assert isinstance(found, dict)
    return found


def _environment_secrets() -> list[str]:
    values = {v for k, v in os.environ.items() if _is_secret(k) and len(v) >= _MIN_CHARS and not v.startswith("/")}
    return sorted(values, key=len, reverse=True)


def _is_secret(name: str) -> bool:
    return bool(_NAME.search(name)) and not _COUNTED.search(name)


def _clean(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            str(k): HIDDEN if _is_secret(str(k)) and v not in (None, "", False) else _clean(v, secrets)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(v, secrets) for v in value]
    if not isinstance(value, str):
        return value
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    value = _QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", value))
    return _VALUES.sub(HIDDEN, value)
