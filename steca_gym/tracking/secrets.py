"""Takes secrets out of settings that a tracker stores: by their names here, by their values in ``redaction``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from steca_gym.redaction import MASK as HIDDEN
from steca_gym.redaction import redact

__all__ = ["HIDDEN", "without_secrets"]

# Names of settings that hold a secret. "tokens" are counted, and "..._env" names an environment variable.
_NAME = re.compile(
    r"(?:^|[_\-.])(?:api_?key|key|secret|passw(?:or)?d|passphrase|token|auth(?:orization)?|credentials?|cookie|"
    r"signature)s?$|api_?key|secret|passw(?:or)?d|private_?key|access_?key|auth_?token|access_?token",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"(?:^|_)tokens$|_env$", re.IGNORECASE)


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings in which every secret is ``[hidden]``.

    Hidden are values of settings whose name says so (``api_key``, ``headers.Authorization``), values that look like a
    key, credentials inside URLs, and values of environment variables whose name says so.
    """
    found = _clean(dict(settings))
    assert isinstance(found, dict)
    return found


def _is_secret(name: str) -> bool:
    return bool(_NAME.search(name)) and not _COUNTED.search(name)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(k): HIDDEN if _is_secret(str(k)) and v not in (None, "", False) else _clean(v) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return redact(value) if isinstance(value, str) else value
