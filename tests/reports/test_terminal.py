"""The terminal view, driven by keys."""

import asyncio

import pytest

pytest.importorskip("textual", reason="SKIPPED: the terminal view needs the terminal extra")

from textual.widgets import DataTable, Static, TabbedContent

from steca_gym.reports.data import report_data
from steca_gym.reports.terminal import InspectApp
from steca_gym.runs.folder import RunFolder
from tests.reports.runs import make_run

HOSTILE = "[red]x[/INST]\x1b[31m\u202e\ud800"


def drive(run, *keys):
    """(app's state) after keys; the shown text, the rows, the tab."""

    async def play():
        app = InspectApp(report_data([RunFolder(run)]))
        async with app.run_test(size=(140, 50)) as pilot:
            await pilot.pause()
            for key in keys:
                await pilot.press(key)
            await pilot.pause()
            text = str(app.query_one("#detail", Static).render())
            return text, app.query_one("#list", DataTable).row_count, app.query_one(TabbedContent).active, app.step

    return asyncio.run(play())


def find(task):
    return ("slash", *("minus" if c == "-" else c for c in task), "enter")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("terminal") / "run", num=6, num_evaluated=3)


@pytest.mark.slow
def test_the_first_trajectory_is_shown_whole_and_replayed_step_by_step(run):
    text, rows, tab, step = drive(run, *find("task-0000"))
    assert "task-0000" in text and "step 6 of 6" in text and "calibration c-0 at step 1: accepted" in text
    assert rows == 1 and tab == "trajectories" and step == 6
    text, *_ = drive(run, *find("task-0000"), "left", "left")
    assert "step 4 of 6" in text and "go to room 3" in text and "go to room 4" not in text and "calibration" not in text
    text, *_, step = drive(run, *find("task-0000"), *["left"] * 9, "right")
    assert step == 1 and "went wrong here" in text
    assert drive(run, *["left"] * 3, "a")[3] == 6


def test_it_goes_to_where_it_went_wrong(run):
    text, *_, step = drive(run, *find("task-0002"), "d")
    assert step == 3 and "task-0002" in text and "jump 2 (deviated" in text


@pytest.mark.slow
def test_search_and_lists(run):
    text, rows, *_ = drive(run, "slash", *"0003", "enter")
    assert rows == 1 and "task-0003" in text
    assert drive(run, "c")[2] == "calibrations" and drive(run, "r")[2] == "runs"
    assert drive(run, "slash", *"nothing", "enter")[1] == 0


def test_texts_are_shown_and_not_obeyed(tmp_path):
    text, *_ = drive(make_run(tmp_path / "run", num=2, num_evaluated=1, text=HOSTILE))
    assert "[red]x[/INST]" in text and "\x1b" not in text and "\u202e" not in text


def test_a_run_without_trajectories_is_empty(tmp_path):
    run = make_run(tmp_path / "run", num=2, num_evaluated=1)
    (run / "buffer.sqlite").unlink()
    for extra in run.glob("buffer.sqlite-*"):
        extra.unlink()
    assert drive(run, "left", "d", "right")[1] == 0
