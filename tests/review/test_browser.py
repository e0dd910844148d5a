"""The review page of a real server in a headless Chromium: keyboard, phone width, themes, accessibility.

Skipped, loudly, without playwright or Chromium. ``SCREENSHOTS=FOLDER`` keeps the pages as pictures.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from steca_gym.buffer import CalibrationBuffer
from steca_gym.runs import RunFolder
from tests.browsing import axe_findings, chromium, keep, until
from tests.methods.playing import play
from tests.review.test_required import ERRING, REVIEWED

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run that waits for decisions, and the real command around it."""
    pytest.importorskip("uvicorn", reason="SKIPPED: the review page needs the review extra")
    folder = tmp_path_factory.mktemp("review") / "run"
    play(folder, "steca", *ERRING, "until=calibration")
    with subprocess.Popen(
        [sys.executable, "-m", "steca_gym.cli", "review", str(folder), "as=Ada,Ben"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        links = [server.stdout.readline().split()[1] for _ in range(2)]
        try:
            yield folder, links
        finally:
            server.terminate()


def test_a_person_decides_with_the_keyboard_and_the_run_continues(browser, served):
    folder, (ada, _) = served
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems = []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.goto(ada)
    until(page, "() => document.querySelector('h1')?.textContent === 'Corrections'")
    keep(page, "review-list")
    page.keyboard.press("n")
    until(page, "() => location.pathname.startsWith('/c/')")
    keep(page, "review-card")
    first = page.url
    assert axe_findings(page) == []
    page.keyboard.press("r")
    until(page, "() => document.activeElement.id === 'why'")
    page.keyboard.type("not what I would teach")
    page.keyboard.press("Control+Enter")
    until(page, "before => location.href !== before && location.pathname.startsWith('/c/')", first)
    page.goto(first)
    page.keyboard.press("u")
    until(page, "() => [...document.querySelectorAll('.entries b')].some((b) => b.textContent === 'undone')")
    page.keyboard.press("e")
    until(page, "() => document.activeElement.id === 'reflection'")
    page.locator("#reflection").fill("I look where I am first.")
    page.get_by_role("button", name="Execute and keep the edit").click()
    until(page, "() => document.querySelector('.tag.edited')?.textContent === 'edited by Ada'")
    keep(page, "review-edited")
    while True:
        page.goto(ada.partition("?")[0] + "next")
        if "/c/" not in page.url:
            break
        before = page.url
        page.keyboard.press("a")
        until(page, "before => location.href !== before", before)
    page.goto(ada.partition("?")[0] + "audit")
    assert "The chain is whole" in page.content()
    keep(page, "review-audit")
    assert axe_findings(page) == [] and problems == []
    context.close()
    with RunFolder(folder).buffer() as buffer:
        assert {d.who for d in buffer.decisions()} == {"Ada"}
    assert "train" in play(folder, "steca", *ERRING, *REVIEWED)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(browser, served, scheme):
    folder, links = served
    with CalibrationBuffer(folder / "buffer.sqlite", read_only=True) as buffer:
        calibration_id = buffer.calibration_rows()[0]["calibration_id"]
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    if scheme == "light":
        page.goto(links[1])
        served[1].append(context.storage_state())
    else:
        context.close()
        context = browser.new_context(
            viewport={"width": 360, "height": 740}, color_scheme=scheme, storage_state=served[1][2]
        )
        page = context.new_page()
    page.goto(f"{links[1].partition('?')[0]}c/{calibration_id}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert axe_findings(page) == []
    keep(page, f"review-phone-{scheme}")
    context.close()
