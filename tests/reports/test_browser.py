"""The page in a headless Chromium: keyboard, phone width, themes, print, hostile texts, accessibility.

Skipped, loudly, without playwright or without a Chromium (``CHROMIUM``, by default /usr/bin/chromium). With
``SCREENSHOTS=FOLDER`` the pages are kept as pictures.
"""

import pytest

from steca_gym.reports.html import HtmlReport
from steca_gym.runs.folder import RunFolder
from tests.browsing import axe_findings, chromium, keep, until
from tests.reports.runs import make_run

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u202e\x1b[31m\ud800\"'`${1}"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder / "run", num=60, num_evaluated=6)
    return HtmlReport().render([RunFolder(run)]).write(folder / "report.html").as_uri()


@pytest.fixture
def page(browser, request):
    options = getattr(request, "param", {})
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.problems = []
    opened.on("console", lambda m: opened.problems.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda e: opened.problems.append(str(e)))
    opened.on("request", lambda r: opened.problems.append(r.url) if r.url.startswith("http") else None)
    yield opened
    context.close()
    assert opened.problems == []


def heading(page, text):
    until(page, "text => document.querySelector('h1')?.textContent === text", text)


def test_the_keyboard_reaches_everything(page, report):
    page.goto(report)
    heading(page, "run")
    page.keyboard.press("2")
    heading(page, "Trajectories")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector(".verdict")
    first = page.url
    page.keyboard.press("j")
    until(page, "before => location.href !== before && document.querySelector('.verdict') !== null", first)
    page.wait_for_selector(".turn.on")
    page.keyboard.press("d")
    lost = page.locator(".turn.on").get_attribute("class")
    page.keyboard.press("ArrowLeft" if "lost" in lost else "ArrowRight")
    page.keyboard.press("Escape")
    heading(page, "Trajectories")
    page.keyboard.press("/")
    until(page, "() => document.activeElement.id === 'search'")
    page.keyboard.type("room 17")
    until(page, "() => document.querySelector('[role=status].muted').textContent.startsWith('1 of')")
    assert page.locator(".list li").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    heading(page, "Where trajectories are lost")
    page.locator(".map a").first.click()
    page.wait_for_selector(".list li")


def test_chart_and_turns_are_linked_both_ways_and_the_link_leads_back(page, report):
    page.goto(report)
    identifier = page.evaluate("ROWS.find((r) => r.task === 'task-0003').id")
    page.goto(f"{report}#/t/{identifier}")
    page.wait_for_selector(".chart svg")
    assert "Went wrong at step 4 of 6: the agent did jump 3" in page.locator(".verdict").inner_text()
    assert page.locator(".turn.on .no").inner_text() == "4"
    page.locator(".turn").nth(1).click()
    assert page.locator(".evidence b").inner_text().strip() == "Step 2"
    assert page.url.endswith("/2")
    box = page.locator(".chart svg").first.bounding_box()
    page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_selector("#tip:not([hidden])")
    assert page.locator("#tip").inner_text().startswith("step ")
    page.mouse.click(box["x"] + 0.62 * box["width"], box["y"] + 0.5 * box["height"])
    until(page, "() => document.querySelector('.turn.on .no').textContent !== '2'")
    keep(page, "trajectory")
    page.reload()
    page.wait_for_selector(".turn.on")
    assert page.locator(".turn.on .no").inner_text() != "2"


@pytest.mark.parametrize("page", [{"viewport": {"width": 375, "height": 720}}], indirect=True)
def test_on_a_phone_nothing_is_wider_than_the_screen(page, report):
    page.goto(report)
    identifier = page.evaluate("ROWS.find((r) => r.calibration === 'accepted').id")
    for view in ("#/", "#/trajectories", "#/failures", f"#/t/{identifier}"):
        page.evaluate("hash => { location.hash = hash; }", view)
        page.wait_for_timeout(400)
        keep(page, "phone-" + (view.split("/")[1] or "overview"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, view


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_the_theme_follows_the_system_and_can_be_changed(page, report):
    page.goto(report)
    heading(page, "run")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    keep(page, "dark")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_print_shows_the_list_and_hides_the_controls(page, report):
    page.goto(report + "#/trajectories")
    page.wait_for_selector(".list li")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".list li").count() == 66
    assert not page.locator("header").is_visible()


def test_hostile_texts_are_shown_and_never_run(page, tmp_path):
    run = make_run(tmp_path / "run", num=4, text=HOSTILE)
    path = HtmlReport().render([RunFolder(run)]).write(tmp_path / "report.html")
    page.goto(path.as_uri())
    page.wait_for_selector("h1")
    for hash_ in [
        "#/trajectories",
        "#/failures?all=1",
        *page.evaluate("ROWS.map((r) => '#/t/' + encodeURIComponent(r.id))"),
    ]:
        page.evaluate("hash => { location.hash = hash; }", hash_)
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img").count() == 0
    page.wait_for_selector(".verdict")
    assert "⟨U+202E⟩" in page.locator("main").inner_text()


def test_a_link_of_another_report_and_an_odd_one_are_answered(page, report):
    for odd in ("#/t/unknown", "#/t/%E0%A4%A", "#/nowhere", "#/trajectories?q=%00&step=x"):
        page.goto("about:blank")
        page.goto(report + odd)
        page.wait_for_selector("h1")


def test_a_screen_reader_finds_no_serious_fault(page, report):
    page.goto(report)
    identifier = page.evaluate("ROWS.find((r) => r.calibration === 'accepted').id")
    for theme in ("light", "dark"):
        for view in ("#/", "#/trajectories", "#/failures", f"#/t/{identifier}"):
            page.goto("about:blank")
            page.emulate_media(color_scheme=theme)
            page.goto(report + view)
            page.wait_for_selector("h1")
            page.wait_for_timeout(500)
            assert axe_findings(page) == [], (theme, view)
