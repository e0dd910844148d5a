"""The page of ``steca review``: a Starlette application on the loopback interface.

Pages are plain forms that work without JavaScript; the script adds keys only. Every text of a world or a model is
escaped by the templates, and the content policy forbids everything that the page does not bring itself.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from steca_gym.buffer import CalibrationBuffer, Durability
from steca_gym.buffer.decisions import Decision, Standing, verify_trail
from steca_gym.calibration.records import Calibration, calibration_from_json
from steca_gym.errors import ConfigError, ConflictError, DataError, StecaError
from steca_gym.review.access import COOKIE, Access, Session, is_own_host, is_own_origin
from steca_gym.review.config import ReviewConfig
from steca_gym.review.editing import Edit, Editor
from steca_gym.review.policy import standing_of

try:
    from jinja2 import Environment, PackageLoader
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ConfigError(
        f"steca review needs {error.name}, which is not installed; run `pip install 'steca-gym[review]'`"
    ) from error

MAX_BODY_BYTES = 64 << 10
PAGE_SIZE = 50
FILTERS = ("waiting", "undecided", "approved", "refused", "edited", "all")
_ASSETS = Path(__file__).parent / "assets"
_FILES = {"style.css": "text/css", "keys.js": "text/javascript"}
# same-origin: with no-referrer a browser sends the Origin "null" with our own forms.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A calibration in the list."""

    calibration_id: str
    task_id: str
    step: int
    status: str
    wrong: str
    right: str
    reflection: str
    standing: Standing
    state: str


class ReviewApp:
    """The application around one run's buffer.

    Args:
        path: ``buffer.sqlite`` of the run.
        config: which calibrations wait for whom.
        access: who may come in.
        port: of the server, for the checks of Host and Origin.
        make_editor: makes what executes edits, at the first edit; None: actions cannot be edited.
        title: the run's name.
        stale: the models that decisions have made stale, one line each.
        durability: what a decision survives, see ``CalibrationBuffer``.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: ReviewConfig,
        access: Access,
        port: int,
        make_editor: Callable[[], Editor] | None = None,
        title: str = "run",
        stale: Callable[[], list[str]] = list,
        durability: Durability = "process",
    ) -> None:
        """See the class."""
        self.path, self.config, self.access, self.port, self.title = path, config, access, port, title
        self._make_editor, self._stale = make_editor, stale
        self._durability: Durability = durability
        self._executing = threading.Lock()
        self._pages = Environment(loader=PackageLoader("steca_gym.review", "assets"), autoescape=True)
        self._pages.filters["visible"] = visible
        self.app = Starlette(
            routes=[
                Route("/", self._guarded(self._list)),
                Route("/next", self._guarded(self._next)),
                Route("/audit", self._guarded(self._audit)),
                Route("/c/{calibration_id:path}/decide", self._guarded(self._decide, writes=True), methods=["POST"]),
                Route("/c/{calibration_id:path}/edit", self._guarded(self._edit, writes=True), methods=["POST"]),
                Route("/c/{calibration_id:path}", self._guarded(self._card)),
                Route("/assets/{name}", self._asset),
            ]
        )

    # -- guarding -------------------------------------------------------------------------------------------

    def _guarded(
        self, handle: Callable[[Request, Session, Mapping[str, str]], Response], *, writes: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Let only own pages with a session through, and turn errors into pages."""

        async def answer(request: Request) -> Response:
            if not is_own_host(request.headers.get("host", ""), self.port):
                return _plain("this server answers on the loopback interface only", 421)
            if token := request.query_params.get("token"):
                return self._enter(token)
            session = self.access.session(request.cookies.get(COOKIE, ""))
            if session is None:
                return _plain("open the link that `steca review` printed; each works once", 403)
            form: dict[str, str] = {}
            if writes:
                if not is_own_origin(request.headers.get("origin", ""), self.port):
                    return _plain("requests of other sites are refused", 403)
                body = await _body(request)
                if body is None:
                    return _plain(f"at most {MAX_BODY_BYTES} bytes", 413)
                form = {k: v[-1] for k, v in parse_qs(body, keep_blank_values=True, max_num_fields=20).items()}
                if not secrets.compare_digest(form.get("form_key", "").encode(), session.form_key.encode()):
                    return _plain("this form is not of your session; open the page again", 403)
            return await run_in_threadpool(self._try, handle, request, session, form)

        return answer

    def _try(
        self,
        handle: Callable[[Request, Session, Mapping[str, str]], Response],
        request: Request,
        session: Session,
        form: Mapping[str, str],
    ) -> Response:
        try:
            return handle(request, session, form)
        except StecaError as error:
            code = 409 if isinstance(error, ConflictError) else 404 if isinstance(error, _NotFound) else 400
            back = request.path_params.get("calibration_id", "")
            return self._page(
                "error.html", session, code, message=str(error), back=f"/c/{quote(back)}" if back else "/"
            )

    def _enter(self, token: str) -> Response:
        secret = self.access.enter(token)
        if secret is None:
            return _plain("this link was used already, or is none of this server's; start `steca review` again", 403)
        answer = RedirectResponse("/", status_code=303, headers=_HEADERS)
        answer.set_cookie(COOKIE, secret, httponly=True, samesite="strict", path="/")
        return answer

    def _page(self, name: str, session: Session, status: int = 200, **values: Any) -> Response:
        text = self._pages.get_template(name).render(
            title=self.title, who=session.who, form_key=session.form_key, quote=quote, **values
        )
        headers = {**_HEADERS, "Content-Type": "text/html; charset=utf-8"}
        return Response(text.encode("utf-8", "replace"), status_code=status, headers=headers)

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES or not is_own_host(request.headers.get("host", ""), self.port):
            return _plain("no such file", 404)
        return Response((_ASSETS / name).read_bytes(), media_type=_FILES[name], headers=_HEADERS)

    # -- reading --------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """All calibrations, ordered by task and step."""
        with CalibrationBuffer(self.path, read_only=True) as buffer:
            standings, found = buffer.standings(), buffer.calibration_rows()
        rows = []
        for row in found:
            standing = standings.get(row["calibration_id"], Standing())
            edited = calibration_from_json(standing.edit.after) if standing.edit is not None else None
            rows.append(
                Row(
                    calibration_id=row["calibration_id"],
                    task_id=row["task_id"],
                    step=row["step"],
                    status=row["status"],
                    wrong=row["deviated_action"],
                    right=row["expert_action"] if edited is None else edited.expert_action,
                    reflection=row["reflection"] if edited is None else edited.reflection.text,
                    standing=standing,
                    state=standing_of(row["calibration_id"], row["status"], standings, self.config),
                )
            )
        return rows

    def _list(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        rows = self.rows()
        show = request.query_params.get("show", "")
        counts = {name: sum(_shown(r, name) for r in rows) for name in FILTERS}
        if show not in FILTERS:
            show = "waiting" if counts["waiting"] else "undecided" if counts["undecided"] else "all"
        words = request.query_params.get("q", "")[:200]
        chosen = [r for r in rows if _shown(r, show) and _matches(r, words)]
        number = request.query_params.get("page", "1")
        last = max(1, -(-len(chosen) // PAGE_SIZE))
        page = min(last, max(1, int(number))) if number.isascii() and number.isdigit() and len(number) < 9 else 1
        return self._page(
            "list.html",
            session,
            rows=chosen[(page - 1) * PAGE_SIZE : page * PAGE_SIZE],
            num_chosen=len(chosen),
            counts=counts,
            show=show,
            words=words,
            page=page,
            last=last,
            mode=self.config.mode,
            stale=self._stale(),
        )

    def _next(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        rows = self.rows()
        after = request.query_params.get("after", "")
        ids = [r.calibration_id for r in rows]
        start = ids.index(after) + 1 if after in ids else 0
        later = [*rows[start:], *rows[:start]]
        for wanted in ("waiting", "undecided"):
            for r in later:
                if _shown(r, wanted) and r.calibration_id != after:
                    return _to(f"/c/{quote(r.calibration_id)}")
        return _to("/?show=all")

    def _card(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        calibration_id = request.path_params["calibration_id"]
        with CalibrationBuffer(self.path, read_only=True) as buffer:
            try:
                original = buffer.original(calibration_id)
            except DataError as error:
                raise _NotFound(str(error)) from error
            standing = buffer.standings().get(calibration_id, Standing())
            entries = [d for d in buffer.decisions() if d.calibration_id == calibration_id]
            calibration = buffer.calibration(calibration_id)
            demonstration = next(
                (t for t in buffer.iter_trajectories(kind="expert", task_id=calibration.task_id)), None
            )
        ids = [r.calibration_id for r in self.rows()]
        at = ids.index(calibration_id) if calibration_id in ids else 0
        return self._page(
            "card.html",
            session,
            c=calibration,
            original=original,
            standing=standing,
            entries=[(d, _differences(d)) for d in entries],
            state=standing_of(calibration_id, calibration.status, {calibration_id: standing}, self.config),
            verdict=next((v for v in calibration.verdicts if v.step == calibration.step), None),
            goal=calibration.trajectory.goal or (demonstration.goal if demonstration else ""),
            first=calibration.trajectory.first_observation,
            history=calibration.trajectory.steps[: calibration.step],
            right=calibration.step + (calibration.kind == "corrected"),
            may_edit=self._make_editor is not None and calibration.status == "accepted",
            own_edit=self.config.own_edits == "refused" and session.who in standing.editors,
            previous=ids[at - 1] if at > 0 else "",
            following=ids[at + 1] if at + 1 < len(ids) else "",
            number=at + 1,
            total=len(ids),
        )

    def _audit(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        with CalibrationBuffer(self.path, read_only=True) as buffer:
            entries = buffer.decisions()
        try:
            head, broken = verify_trail(entries), ""
        except DataError as error:
            head, broken = "", str(error)
        shown = list(reversed(list(enumerate(entries, start=1))))[:500]
        return self._page(
            "audit.html",
            session,
            entries=[(number, d, _differences(d)) for number, d in shown],
            num_entries=len(entries),
            head=head,
            broken=broken,
        )

    # -- deciding -------------------------------------------------------------------------------------------

    def _decide(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        calibration_id, word, why = request.path_params["calibration_id"], form.get("word", ""), form.get("why", "")
        version = _version(form)
        with CalibrationBuffer(self.path, durability=self._durability) as buffer:
            if word == "undone":
                buffer.undo(calibration_id, who=session.who, why=why, version=version)
                return _to(f"/c/{quote(calibration_id)}")
            if word not in ("approved", "refused"):
                raise DataError(f"a decision is approved, refused or undone, got {word[:40]!r}")
            if word == "refused" and not why.strip():
                raise DataError("a refusal needs a reason; say what is wrong with the correction")
            standing = buffer.standings().get(calibration_id, Standing())
            if word == "approved" and self.config.own_edits == "refused" and session.who in standing.editors:
                raise DataError(
                    f"{session.who} edited this correction; another person has to approve it (review.own_edits=refused)"
                )
            buffer.decide(calibration_id, word, who=session.who, why=why, version=version)  # type: ignore[arg-type]
        return _to(f"/next?after={quote(calibration_id)}")

    def _edit(self, request: Request, session: Session, form: Mapping[str, str]) -> Response:
        if self._make_editor is None:
            raise DataError("nothing can be executed here, so actions cannot be edited")
        calibration_id, version = request.path_params["calibration_id"], _version(form)
        edit = Edit(reflection=form.get("reflection", "").replace("\r\n", "\n"), action=form.get("action", ""))
        with CalibrationBuffer(self.path, durability=self._durability) as buffer:
            standing = buffer.standings().get(calibration_id, Standing())
            if version is not None and standing.num_entries != version:
                raise ConflictError(
                    f"calibration {calibration_id!r} has been decided by somebody else since you opened it; "
                    "look at it again"
                )
            with self._executing:  # one world at a time
                changed = self._editor.apply(buffer.calibration(calibration_id), edit, who=session.who)
            buffer.edit(changed, who=session.who, why=form.get("why", ""), version=version)
        return _to(f"/c/{quote(calibration_id)}")

    @functools.cached_property
    def _editor(self) -> Editor:
        assert self._make_editor is not None
        return self._make_editor()


class _NotFound(DataError):
    pass


def visible(text: object) -> str:
    """A text in which control and direction characters are shown instead of obeyed."""
    return "".join(
        c if c == "\n" or (c.isprintable() and c not in _DIRECTIONS) else f"\\u{ord(c):04x}" for c in str(text)
    )


_DIRECTIONS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _plain(text: str, status: int) -> Response:
    return PlainTextResponse(text + "\n", status_code=status, headers=_HEADERS)


def _to(place: str) -> Response:
    return RedirectResponse(place, status_code=303, headers=_HEADERS)


async def _body(request: Request) -> str | None:
    """The body as text; None where it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return None
    return body.decode("utf-8", "replace")


def _version(form: Mapping[str, str]) -> int | None:
    text = form.get("version", "")
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise DataError("this form does not say which version of the correction it is about; open the page again")
    return int(text)


def _shown(row: Row, name: str) -> bool:
    if name == "waiting":
        return row.state == "waiting"
    if name == "undecided":
        return row.status == "accepted" and not row.standing.word
    if name == "edited":
        return row.standing.edit is not None
    return name == "all" or row.standing.word == name


def _matches(row: Row, words: str) -> bool:
    text = f"{row.task_id} {row.wrong} {row.right} {row.reflection} {row.calibration_id}".casefold()
    return all(word in text for word in words.casefold().split())


def _differences(entry: Decision) -> list[tuple[str, str, str]]:
    """(what, before, after) of an edit."""
    if entry.decision != "edited":
        return []
    before, after = (calibration_from_json(text) for text in (entry.before, entry.after))
    pairs = {
        "action": (before.expert_action, after.expert_action),
        "reflection": (before.reflection.text, after.reflection.text),
        "continuation": (_continuation(before), _continuation(after)),
    }
    return [(name, a, b) for name, (a, b) in pairs.items() if a != b]


def _continuation(c: Calibration) -> str:
    return ", ".join(c.trajectory.actions[c.step + 1 + (c.kind == "corrected") :]) or "(none)"
