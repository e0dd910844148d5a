"""The review page: who may come in, what is decided and recorded, and what two people may not do to each other."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="SKIPPED: the review page needs the review extra")

from starlette.testclient import TestClient

from steca_gym.agent import Prompt
from steca_gym.buffer import CalibrationBuffer, verify_trail
from steca_gym.review.access import Access
from steca_gym.review.config import ReviewConfig
from steca_gym.review.editing import Editor
from steca_gym.review.server import MAX_BODY_BYTES, ReviewApp, visible
from tests.calibration.test_pipeline import calibrate, collect, experts, make_corridor, slipping
from tests.fakes import FakeAgent
from tests.reports.runs import result_of

PORT = 8765
BASE = f"http://127.0.0.1:{PORT}"
ORIGIN = {"origin": BASE}


class Server:
    """An application around a buffer, and people who came in with their links."""

    def __init__(self, folder, results, **kwargs):
        self.path = folder / "buffer.sqlite"
        with CalibrationBuffer(self.path) as buffer:
            for result in results:
                buffer.add_result(result, phase="calibration")
        self.access = Access()
        settings = {"config": ReviewConfig(mode="required"), **kwargs}
        self.app = ReviewApp(self.path, access=self.access, port=PORT, **settings)

    def client(self):
        return TestClient(self.app.app, base_url=BASE, follow_redirects=False)

    def person(self, who):
        client = self.client()
        answer = client.get("/", params={"token": self.access.invite(who)})
        assert answer.status_code == 303
        return client

    def decisions(self):
        with CalibrationBuffer(self.path, read_only=True) as buffer:
            return buffer.decisions()


def fields(page):
    """The hidden fields of the page's first form."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))


def decide(client, calibration_id, word, why="", page=None, **headers):
    shown = page or client.get(f"/c/{calibration_id}")
    form = {**fields(shown), "word": word, "why": why}
    return client.post(f"/c/{calibration_id}/decide", data=form, headers={**ORIGIN, **headers})


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path, [result_of(n) for n in range(4)])


# -- who may come in -------------------------------------------------------------------------------------------


def test_a_link_works_once_and_nobody_comes_in_without_one(server):
    token = server.access.invite("Ada")
    first, second = server.client(), server.client()
    assert first.get("/").status_code == 403
    entered = first.get("/", params={"token": token})
    cookie = entered.headers["set-cookie"]
    assert entered.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert token not in first.get("/").text and first.get("/").status_code == 200
    for wrong in (token, "", "x", "\u20ac", token[:-1]):
        assert second.get("/", params={"token": wrong}).status_code == 403
    for place in ("/", "/next", "/audit", "/c/c-0"):
        assert second.get(place).status_code == 403
    assert second.post("/c/c-0/decide", headers=ORIGIN).status_code == 403 and server.decisions() == []


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"[::1]:{PORT}", ""]
)
def test_other_host_names_are_refused(server, host):
    client = server.person("Ada")
    for place in ("/", "/audit", "/c/c-0"):
        assert client.get(place, headers={"host": host}).status_code == 421
    assert client.get("/assets/keys.js", headers={"host": host}).status_code == 404


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", f"https://127.0.0.1:{PORT}", f"{BASE}0"])
def test_requests_of_other_sites_are_refused(server, origin):
    client = server.person("Ada")
    assert decide(client, "c-0", "approved", origin=origin).status_code == 403
    assert server.decisions() == []


def test_a_form_of_another_session_is_refused(server):
    ada, ben = server.person("Ada"), server.person("Ben")
    assert decide(ben, "c-0", "approved", page=ada.get("/c/c-0")).status_code == 403
    form = {**fields(ada.get("/c/c-0")), "word": "approved"}
    del form["form_key"]
    assert ada.post("/c/c-0/decide", data=form, headers=ORIGIN).status_code == 403
    assert server.decisions() == []


@pytest.mark.parametrize(
    "path",
    ["/assets/../server.py", "/assets/%2e%2e/server.py", "/assets/..%2fserver.py", "/assets/base.html", "/assets/%00"],
)
def test_no_other_file_is_given(server, path):
    answer = server.person("Ada").get(path)
    assert answer.status_code == 404 and "import" not in answer.text


@pytest.mark.parametrize(
    "path", ["/c/../../etc/passwd", "/c/%2e%2e%2f%2e%2e%2fetc", "/c/nope", "/c/c-0%00", "/c/" + 3000 * "x"]
)
def test_a_correction_that_is_none_is_a_page_that_says_so(server, path):
    answer = server.person("Ada").get(path)
    assert answer.status_code == 404 and "root:" not in answer.text


def test_a_large_form_is_refused(server):
    client = server.person("Ada")
    assert decide(client, "c-0", "refused", why=(MAX_BODY_BYTES + 1) * "x").status_code == 413
    assert server.decisions() == []


def test_headers_forbid_what_the_page_does_not_bring(server):
    headers = server.person("Ada").get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in str(headers)
    assert headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"


# -- deciding --------------------------------------------------------------------------------------------------


def test_a_decision_is_recorded_under_the_persons_name_and_the_next_one_is_shown(server):
    client = server.person("Ada")
    answer = decide(client, "c-0", "approved", why="looks right")
    assert answer.status_code == 303 and answer.headers["location"] == "/next?after=c-0"
    assert client.get("/next?after=c-0").headers["location"] == "/c/c-1"
    decide(client, "c-1", "refused", why="wrong room")
    decide(client, "c-3", "approved")
    assert [(d.who, d.decision, d.why) for d in server.decisions()] == [
        ("Ada", "approved", "looks right"),
        ("Ada", "refused", "wrong room"),
        ("Ada", "approved", ""),
    ]
    page = client.get("/").text
    assert "Everything that training waits for is decided" in page
    assert client.get("/next").headers["location"] == "/?show=all"
    assert "The chain is whole" in client.get("/audit").text


def test_a_refusal_needs_a_reason_and_a_word_has_to_be_one(server):
    client = server.person("Ada")
    for word, why, told in (("refused", " ", "needs a reason"), ("maybe", "x", "a decision is"), ("", "x", "decision")):
        answer = decide(client, "c-0", word, why)
        assert answer.status_code == 400 and told in answer.text
    assert server.decisions() == []


def test_an_undo_takes_it_back(server):
    client = server.person("Ada")
    decide(client, "c-0", "refused", "no")
    assert "Undo the last refused" in client.get("/c/c-0").text
    assert decide(client, "c-0", "undone").headers["location"] == "/c/c-0"
    assert "Undo" not in client.get("/c/c-0").text and decide(client, "c-0", "undone").status_code == 400
    assert [d.decision for d in server.decisions()] == ["refused", "undone"]


def test_two_people_do_not_overwrite_each_other(server):
    ada, ben = server.person("Ada"), server.person("Ben")
    seen = ben.get("/c/c-0")
    assert decide(ada, "c-0", "refused", "no").status_code == 303
    late = decide(ben, "c-0", "approved", page=seen)
    assert late.status_code == 409 and "somebody else" in late.text
    assert [(d.who, d.decision) for d in server.decisions()] == [("Ada", "refused")]
    assert decide(ben, "c-0", "approved").status_code == 303


def test_of_many_who_decide_at_once_one_is_recorded(server):
    people = [server.person(f"P{i}") for i in range(8)]
    pages = [p.get("/c/c-0") for p in people]
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda i: decide(people[i], "c-0", "approved", page=pages[i]).status_code, range(8)))
    assert sorted(codes) == [303] + 7 * [409]
    assert verify_trail(server.decisions()) and len(server.decisions()) == 1


# -- editing ---------------------------------------------------------------------------------------------------


def editable(tmp_path, **kwargs):
    results = calibrate(collect(slipping("wait", 2, helpless=True)), experts(1), make_env=make_corridor).results
    make = lambda: Editor(make_corridor, FakeAgent(lambda _: ""), prompt=Prompt())  # noqa: E731
    server = Server(tmp_path, results, make_editor=make, **kwargs)
    return server, results[0].calibrations[0].calibration_id


def edit(client, calibration_id, **changes):
    page = client.get(f"/c/{calibration_id}")
    return client.post(f"/c/{calibration_id}/edit", data={**fields(page), **changes}, headers=ORIGIN)


def test_an_edit_is_executed_recorded_with_before_and_after_and_has_to_be_decided(tmp_path):
    server, calibration_id = editable(tmp_path)
    client = server.person("Ada")
    decide(client, calibration_id, "approved")
    assert edit(client, calibration_id, reflection="I step back.", action="detour", why="safer").status_code == 303
    page = client.get(f"/c/{calibration_id}").text
    assert "edited by Ada" in page and "<del>go on</del> <ins>detour</ins>" in page and "waits for a decision" in page
    assert "person:Ada" in page
    refused = edit(client, calibration_id, reflection="x", action="fly")
    assert refused.status_code == 400 and "did not understand" in refused.text
    assert [d.decision for d in server.decisions()] == ["approved", "edited"]


def test_who_edits_may_not_approve_where_the_setting_says_so(tmp_path):
    server, calibration_id = editable(tmp_path, config=ReviewConfig(own_edits="refused"))
    ada, ben = server.person("Ada"), server.person("Ben")
    edit(ada, calibration_id, reflection="I step back.", action="detour")
    assert "another person has to approve it" in ada.get(f"/c/{calibration_id}").text
    refused = decide(ada, calibration_id, "approved")
    assert refused.status_code == 400 and "another person has to approve it" in refused.text
    assert decide(ben, calibration_id, "approved").status_code == 303


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
def test_decisions_survive_what_the_run_asks_for(tmp_path, monkeypatch, durability, synchronous):
    server = Server(tmp_path, [result_of(0)], durability=durability)
    opened = []
    decided = CalibrationBuffer.decide

    def decide_and_look(buffer, *args, **kwargs):
        opened.append(buffer._db.execute("PRAGMA synchronous").fetchone()[0])
        return decided(buffer, *args, **kwargs)

    monkeypatch.setattr(CalibrationBuffer, "decide", decide_and_look)
    assert decide(server.person("Ada"), "c-0", "approved").status_code == 303
    assert opened == [synchronous]


# -- what is shown ---------------------------------------------------------------------------------------------

HOSTILE = "</textarea></script><script>hacked()</script><img src=x onerror=hacked()>\u202e\x1b[31m\ud800\"'"


def test_hostile_texts_are_shown_and_not_obeyed(tmp_path):
    server = Server(tmp_path, [result_of(n, HOSTILE) for n in range(2)], make_editor=lambda: None)
    client = server.person("<b>Ada</b>")
    for place in ("/", "/?show=all&q=%3Cscript%3E", "/c/c-0"):
        text = client.get(place).text
        assert client.get(place).status_code == 200
        assert "<script>hacked" not in text and "<img" not in text and "<b>Ada" not in text
        # What is edited stays as it is.
        shown = re.sub(r'<details class="edit">.*?</details>', "", text, flags=re.DOTALL)
        assert "\u202e" not in shown and "\x1b" not in shown
    assert "\\u202e" in client.get("/c/c-0").text
    assert decide(client, "c-0", "refused", HOSTILE.replace("\ud800", "")).status_code == 303
    assert "<script>hacked" not in client.get("/audit").text


def test_control_characters_become_their_codes():
    assert visible("a\nb\tc\x1b\u202e\ud800é") == "a\nb\\u0009c\\u001b\\u202e\\ud800é"


def test_filters_search_and_pages(tmp_path):
    server = Server(tmp_path, [result_of(n) for n in range(130)])
    client = server.person("Ada")
    decide(client, "c-0", "approved")
    assert "1 of 104" in client.get("/?show=approved").text
    assert "1 of 104" in client.get("/?show=all&q=task-0103").text
    assert "page 2 of 3" in client.get("/?show=all&page=2").text
    for page in ("0", "-1", "x", "99999999999999", "²"):
        assert client.get(f"/?show=all&page={page}").status_code == 200


def test_a_broken_trail_is_said(server):
    import sqlite3

    client = server.person("Ada")
    decide(client, "c-0", "approved")
    with sqlite3.connect(server.path) as db:
        db.execute("DROP TRIGGER decisions_stand")
        db.execute("UPDATE decisions SET who = 'Eve'")
    assert "the audit trail is broken at entry 1 of 1" in client.get("/audit").text


def test_models_that_a_decision_made_stale_are_named(tmp_path):
    server = Server(tmp_path, [result_of(0)], stale=lambda: ["model: c-0 was refused by <Ben>"])
    assert "Stale model: model: c-0 was refused by &lt;Ben&gt;." in server.person("Ada").get("/").text
