"""The page as a text: nothing of a world or a model becomes markup, and everything is inside."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steca_gym.reports.html import HtmlReport, to_script_json
from steca_gym.runs.folder import RunFolder
from tests.reports.runs import make_run

ANY_TEXT = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "&lt;", "\u2028", "<img src=x onerror=alert(1)>"]
)
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u202e\x1b[31m\ud800\"'`${1}"


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.comments = 0

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_comment(self, data):
        self.comments += 1


def elements(page):
    parser = Elements()
    parser.feed(page.text)
    return parser


def blocks(page, kind="application/json"):
    return dict(re.findall(rf'<script type="{kind}" id="data-([^"]+)">([^<]*)</script>', page.text))


def details(page):
    packed = blocks(page, "application/octet-stream")
    return [d for text in packed.values() for d in json.loads(gzip.decompress(base64.b64decode(text)))]


@given(
    st.recursive(
        ANY_TEXT | st.floats() | st.booleans() | st.none(), lambda x: st.lists(x) | st.dictionaries(ANY_TEXT, x)
    )
)
def test_json_in_a_script_cannot_end_it(value):
    text = to_script_json(value)
    assert text.isascii() and not set(text) & set("<>&")
    json.loads(text)


@given(ANY_TEXT)
def test_a_text_without_hidden_characters_comes_back(text):
    if text.isprintable():
        assert json.loads(to_script_json({"text": text})) == {"text": text}


def test_hostile_texts_add_no_element_and_no_attribute(tmp_path):
    plain = HtmlReport().render([RunFolder(make_run(tmp_path / "plain", text="harmless"))])
    hostile = HtmlReport().render([RunFolder(make_run(tmp_path / "hostile", text=HOSTILE))])
    shape = [(tag, sorted(attrs)) for tag, attrs in elements(plain).found]
    assert [(tag, sorted(attrs)) for tag, attrs in elements(hostile).found] == shape
    hostile.text.encode("utf-8")
    assert "\u202e" not in hostile.text and "\x1b" not in hostile.text


def test_nothing_is_loaded_and_only_its_own_scripts_may_run(tmp_path):
    page = HtmlReport().render([RunFolder(make_run(tmp_path / "run"))])
    found = elements(page).found
    assert not [attrs["src"] for _, attrs in found if "src" in attrs]
    assert [attrs["href"] for tag, attrs in found if tag == "link"] == ["data:,"]
    policy = next(attrs["content"] for _, attrs in found if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    assert "script-src 'unsafe" not in policy


def test_the_page_holds_every_trajectory_with_its_evidence(tmp_path):
    page = HtmlReport().render([RunFolder(make_run(tmp_path / "run", num=45, num_evaluated=3))])
    rows, found = json.loads(blocks(page)["rows"]), details(page)
    assert len(rows) == len(found) == 48
    first = next(i for i, r in enumerate(rows) if r["task"] == "task-0001")
    assert rows[first]["lost"] == 1 and rows[first]["calibration"] == "accepted"
    assert [v["verdict"] for v in found[first]["values"]] == ["same_action", "deviated"]
    assert found[first]["values"][1]["agent"]["outcomes"] == [1.0] * 2 + [0.0] * 8


@pytest.mark.slow
def test_a_megabyte_does_not_blow_up_the_page(tmp_path):
    page = HtmlReport().render([RunFolder(make_run(tmp_path / "run", num=2, text="x" * 1_000_000))])
    assert len(page.text) < 3_000_000
    assert "more characters not shown" in json.dumps(details(page), ensure_ascii=False)


@pytest.mark.parametrize("options", [{"calibrated": False}, {"num_evaluated": 0}, {"num": 0, "num_evaluated": 0}])
def test_any_part_may_be_missing(tmp_path, options):
    page = HtmlReport().render([RunFolder(make_run(tmp_path / "run", **options))])
    assert json.loads(blocks(page)["summary"])["runs"][0]["next"]
