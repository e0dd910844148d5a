"""Who may use the review page: one-time links, sessions, and requests that come from the page itself."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

COOKIE = "steca_review"


@dataclass(frozen=True, slots=True)
class Session:
    """A person who came in with a link."""

    who: str
    form_key: str
    """stands in every form of the session, so that no other site can send one"""


@dataclass(slots=True)
class Access:
    """Links and sessions of one server; all of them end with it."""

    _links: dict[str, str] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)

    def invite(self, who: str) -> str:
        """A token for one person, for one use."""
        token = secrets.token_urlsafe(24)
        self._links[token] = who
        return token

    def enter(self, token: str) -> str | None:
        """Use up a token; returns the session's secret, None for an unknown or used token."""
        found = _find(self._links, token)
        if found is None:
            return None
        who = self._links.pop(found)
        secret = secrets.token_urlsafe(24)
        self._sessions[secret] = Session(who, secrets.token_urlsafe(24))
        return secret

    def session(self, secret: str) -> Session | None:
        """The session of a cookie."""
        found = _find(self._sessions, secret)
        return None if found is None else self._sessions[found]


def _find(known: Iterable[str], given: str) -> str | None:
    """The known secret that equals the given one, compared in constant time."""
    try:
        return next((k for k in list(known) if hmac.compare_digest(k.encode(), given.encode())), None)
    except UnicodeEncodeError:
        return None


def is_own_host(host: str, port: int) -> bool:
    """Whether a Host header names this server on the loopback interface: other names can be made to lead here."""
    return host in (f"127.0.0.1:{port}", f"localhost:{port}")


def is_own_origin(origin: str, port: int) -> bool:
    """Whether an Origin header is that of our own page."""
    return origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}")
