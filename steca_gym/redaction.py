"""Secrets out of texts: the one place that knows what a secret looks like.

Every error of this package, every stored failure, the settings in a run's record, what trackers are given, and what the
endpoints' HTTP library logs pass through here. A secret is

- the value of an environment variable whose name says so (``OPENAI_API_KEY``, ``HF_TOKEN``, ``DB_PASSWORD``);
- a value that was handed to ``hide``, such as an endpoint's key or a setting read with ``${oc.env:NAME}``;
- what looks like a key (``sk-...``, ``hf_...``), what stands before the ``@`` of a URL, a parameter such as
  ``?api_key=``, a ``Bearer`` or ``Basic`` credential.

A secret that a command line spells out in another setting cannot be recognised by its value; ``secret_setting`` finds
it by its name, and the run is refused before anything is stored.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import sys
import traceback
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

MASK = "[hidden]"
MIN_CHARS = 8
"""shorter values of environment variables are not looked for: they would be found in ordinary words"""

_NAME = r"(?:api)?key|token|secret|passw(?:or)?d|passphrase|pass|pwd|credentials?|auth|authorization|sig|signature"
_SECRET_NAME = re.compile(rf"(?:.*[_.-])?(?:{_NAME})\Z", re.IGNORECASE)
# Settings whose name ends like a secret's and that are none: counts, and names of other things.
_SETTING = (
    r"(?:[\w.-]{0,60}[_.-])?(?:(?:api|access|secret|private)_?key|(?:auth|access|api|bearer|refresh|hf|session)?_?token"
    r"|secret|passw(?:or)?d|passphrase|credentials?|authorization)"
)
_SETTING_NAME = re.compile(_SETTING + r"\Z", re.IGNORECASE)
_IN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}:/{2})[^\s/?#'\"<>]{1,2000}@")
_IN_QUERY = re.compile(rf"([?&;](?:[\w.-]{{0,60}}[_.-])?(?:{_NAME})=)[^&;#\s'\"]+", re.IGNORECASE)
_ASSIGNED = re.compile(rf"\b({_SETTING}\s?=\s?)(?!['\"]?\$\{{)[^\s;,&]+", re.IGNORECASE)
_SCHEME = re.compile(r"\b(bearer|basic)\s+[^\s\"',;}]{4,}", re.IGNORECASE)
# What looks like a key, whatever it is called.
_KEY = re.compile(
    r"\bsk-[\w-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bxox[abprs]-[\w-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bwandb_v1_\w{20,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
)
_hidden: set[str] = set()


def hide(secret: str) -> None:
    """Take a value for a secret from now on, in this process."""
    if len(secret.strip()) >= 4:
        _hidden.add(secret.strip())


def redact(text: str, *, known: Iterable[str] = ()) -> str:
    """A text without its secrets, in whichever form they come: raw, percent-encoded, in JSON, in base64.

    Args:
        text: any text.
        known: further secrets, e.g. the key that was sent to the server that this text is from.
    """
    text = remove(text, {*known, *_hidden, *_environment()})
    if "://" in text:
        text = _IN_URL.sub(rf"\1{MASK}@", text)
    if "=" in text:
        text = _ASSIGNED.sub(rf"\1{MASK}", _IN_QUERY.sub(rf"\1{MASK}", text))
    return _SCHEME.sub(rf"\1 {MASK}", _KEY.sub(MASK, text))


def remove(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets; nothing else of it is changed."""
    for form in _forms(set(secrets)):
        if form in text:
            text = text.replace(form, MASK)
    return text


def redact_data(value: Any) -> Any:
    """JSON data without the secrets in its texts; keys and other values stay."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {k: redact_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_data(v) for v in value]
    return value


def secret_setting(raw: Any, where: str = "") -> str:
    """The key of the first setting that spells out a secret, before interpolation; empty where there is none.

    ``password: hunter2`` and ``url: https://user:hunter2@host`` are such, ``password: ${oc.env:DB_PASSWORD}`` is not.
    """
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            found = secret_setting(value, f"{where}.{key}" if where else str(key))
            if found:
                return found
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            found = secret_setting(value, f"{where}[{index}]")
            if found:
                return found
    elif isinstance(raw, str) and raw not in ("", "???") and "${" not in raw:
        name = re.sub(r"\[\d+\]\Z", "", where).rpartition(".")[2]
        if _SETTING_NAME.match(name) or holds_credentials(raw):
            return where
        # The name of a variable was asked for, and the secret itself given.
        if name.endswith("_env") and _SETTING_NAME.match(name[:-4]) and not re.fullmatch(r"[A-Za-z_]\w*", raw):
            return where
    return ""


def hide_interpolated(raw: Any, resolved: Any, name: str = "") -> None:
    """Hide what settings with a secret's name have taken from elsewhere, as in ``${oc.env:DB_PASSWORD}``."""
    if isinstance(raw, Mapping) and isinstance(resolved, Mapping):
        for key, value in raw.items():
            hide_interpolated(value, resolved.get(key), str(key))
    elif isinstance(raw, list | tuple) and isinstance(resolved, list | tuple):
        for value, held in zip(raw, resolved, strict=False):
            hide_interpolated(value, held, name)
    elif isinstance(raw, str) and "${" in raw and isinstance(resolved, str) and _SETTING_NAME.match(name):
        hide(resolved)


def holds_credentials(url: str) -> bool:
    """Whether a text is a URL with a user, a password or a key in it."""
    if "://" not in url or not re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://", url):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        names = [name for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:
        return "@" in url
    return "@" in parts.netloc or any(_SECRET_NAME.match(n) for n in names)


def redacted_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A ``sys.excepthook`` that prints a stack without its secrets."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


class RedactLogs(logging.Filter):
    """Redacts each record; for loggers of libraries that log what they send and receive."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, without its secrets."""
        try:
            said = record.getMessage()
        except Exception:  # a record that cannot be shown is its logger's fault, not a reason to fail here
            return True
        cleaned = redact(said)
        if cleaned != said:
            record.msg, record.args = cleaned, ()
        return True


_FILTER = RedactLogs()


def guard_loggers(*names: str) -> None:
    """Redact what these loggers say; a logger's filter does not hold for the loggers below it, so name each."""
    for name in names:
        logging.getLogger(name).addFilter(_FILTER)


def _environment() -> Iterator[str]:
    for name, value in os.environ.items():
        value = value.strip()
        # A plain word or a path is no secret, and would be found in ordinary texts.
        if len(value) >= MIN_CHARS and _SECRET_NAME.match(name) and not re.fullmatch(r"[a-z]+|/.*", value):
            yield value


def _forms(secrets: set[str]) -> list[str]:
    forms: set[str] = set()
    for secret in secrets:
        if not secret:
            continue
        forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        # A key with a line break comes back line by line where texts are shown on one line.
        forms |= {part for part in secret.split() if len(part) >= MIN_CHARS} | {" ".join(secret.split())}
        forms |= {urllib.parse.quote(secret, safe=""), urllib.parse.quote(secret), urllib.parse.quote_plus(secret)}
        data = secret.encode("utf-8", "surrogatepass")
        for user in (b"", b":", b"user:"):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                forms.add(encode(user + data).decode().rstrip("="))
    return sorted(forms, key=len, reverse=True)
