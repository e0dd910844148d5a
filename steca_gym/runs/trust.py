"""Whether the settings that lie in a run's folder may name code.

Settings can name any importable object (``_target_``, ``module:Object``), so a folder that somebody sent could run code
when it is opened. A folder that this user's own commands wrote carries a seal: a keyed digest of its settings, with a
key that only this user can read. Any other folder may name objects of this package, and of the packages that the user
allows with ``--trust PACKAGE`` (or ``STECA_TRUST=PACKAGE,PACKAGE``).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steca_gym.errors import ConfigError, StorageError
from steca_gym.files import cache_dir

OWN = "steca_gym"
SEALED = ("overrides", "config_dirs", "settings")
_OBJECT = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w./-]*)$")
_TARGET = re.compile(r"_target_\s*['\"]?\s*[:=]\s*['\"]?([\w.]+)")
_allowed: set[str] = set()


def allow(packages: Iterable[str]) -> None:
    """Let stored settings name objects of these packages, for this process."""
    for name in packages:
        if not name.isidentifier():
            raise ConfigError(f"--trust takes the name of an importable package, got {name!r}; e.g. --trust my_module")
        _allowed.add(name)


def take_trust(args: list[str]) -> list[str]:
    """Arguments without ``--trust PACKAGE``, which is noted."""
    allow(n for n in os.environ.get("STECA_TRUST", "").split(",") if n)
    kept: list[str] = []
    waiting = False
    for arg in args:
        if waiting:
            allow([arg])
            waiting = False
        elif arg == "--trust":
            waiting = True
        elif arg.startswith("--trust="):
            allow([arg.partition("=")[2]])
        else:
            kept.append(arg)
    if waiting:
        raise ConfigError("--trust needs the name of a package after it, e.g. --trust my_module")
    return kept


def seal(raw: Mapping[str, Any]) -> str:
    """The seal of a record that this user writes; empty where no key can be kept."""
    key = _key(create=True)
    return "" if key is None else _digest(raw, key)


def check_trusted(folder: Path, raw: Mapping[str, Any]) -> None:
    """Raise ConfigError where a record that this user did not write names code of packages that are not allowed."""
    key = _key(create=False)
    if key is not None and hmac.compare_digest(_digest(raw, key), str(raw.get("seal", ""))):
        return
    for found in sorted(set(named_code(raw))):
        top = found.split(".", 1)[0]
        if top != OWN and top not in _allowed:
            raise ConfigError(
                f"{str(folder)!r} was not written by you on this machine, and its settings name code: {found[:120]!r}; "
                f"look at it, and add --trust {top if top.isidentifier() else 'PACKAGE'} if you trust it"
            )


def named_code(raw: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of everything that a record's settings would import; folders of configurations as they stand."""
    yield from (str(d) for d in raw.get("config_dirs") or () if str(d))
    for override in map(str, raw.get("overrides") or ()):
        key, _, value = override.lstrip("+~").partition("=")
        if key.split(".")[0].split("/")[0] == "hydra" or key.startswith("-"):
            yield key
        yield from _in_text(value)
        if key == "logger":  # the one group that takes a list: [jsonl,module:Object]
            for name in value.strip("'\"[] ").split(","):
                yield from _in_text(name.strip())
        yield from (m[1] for m in _TARGET.finditer(override))
        if key.rsplit(".", 1)[-1] == "_target_":
            yield value.strip("'\" ")
    yield from _in_settings(raw.get("settings"))


def _in_settings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if str(key) == "_target_":
                yield str(inner)
            elif str(key) not in ("prompt", "hydra"):  # prose; what Hydra itself was given stands in the overrides
                yield from _in_settings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _in_settings(inner)
    elif isinstance(value, str):
        yield from _in_text(value)


def _in_text(text: str) -> Iterator[str]:
    found = _OBJECT.match(text.strip("'\" "))
    if found and not text.startswith(("http:", "https:", "ws:", "wss:")):
        yield f"{found[1]}.{found[2]}"


def _digest(raw: Mapping[str, Any], key: bytes) -> str:
    content = json.dumps({name: raw.get(name) for name in SEALED}, sort_keys=True, default=str)
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool) -> bytes | None:
    """This user's key; None where there is none and none can be kept."""
    try:
        path = cache_dir("run-key")
    except StorageError:
        return None
    with contextlib.suppress(OSError):
        if not path.exists() and create:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Complete before it has its name; whoever comes second keeps the first one's.
            part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            part.touch(0o600, exist_ok=False)
            part.write_bytes(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
            part.unlink()
        key = path.read_bytes()
        return key if len(key) == 32 and not path.stat().st_mode & 0o077 else None
    return None
