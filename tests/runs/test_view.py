"""What a person sees of a run: live, plain or quiet, with rates that are measured and figures that are right."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from steca_gym.cli import main
from steca_gym.collectors import Ledger
from steca_gym.errors import ConfigError
from steca_gym.prices import Prices
from steca_gym.runs.view import Meter, Mode, View, counting, duration, view_mode
from tests.runs.test_runner import TINY

ROOT = Path(__file__).parents[2]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock, mode: Mode = "plain") -> tuple[View, io.StringIO]:
    text = io.StringIO()
    return View(Console(file=text, width=300), mode=mode, clock=clock), text


def test_the_time_left_is_that_of_the_rate_since_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    meter = Meter("games", 100, Ledger(), clock=clock)
    assert meter.seconds_left() is None
    clock.now += 60  # loading
    meter.update(41)  # 40 were done by an earlier process
    assert meter.seconds_left() is None  # one is no rate
    clock.now += 20
    meter.update(51)
    assert meter.seconds_left() == 98  # 2 s each, 49 left
    meter.update(100)
    assert meter.seconds_left() == 0


def test_figures_are_of_this_piece_of_work_only() -> None:
    clock, ledger = Clock(), Ledger()
    with ledger.phase("before"):
        ledger.cost.num_sampled_tokens += 1000
    with ledger.phase("evaluation"):
        meter = Meter("games", 4, ledger, clock=clock)
        ledger.cost.num_sampled_tokens += 300
        ledger.cost.num_prompt_tokens_read += 900
        ledger.cost.num_env_steps += 12
        with ledger.phase("stress"):  # an inner phase counts as well
            ledger.cost.num_env_steps += 3
    clock.now += 2
    meter.update(3, "stress test", won=2, num_played=3, metrics={"num_accepted": 5.0})
    found = meter.figures()
    assert found["num_sampled_tokens"] == 300 and found["num_env_steps"] == 15
    assert found["sampled_tokens_per_second"] == 150 and found["seconds"] == 2
    assert found["success"] == pytest.approx(2 / 3) and 0 < found["success_low"] < 2 / 3 < found["success_high"] < 1
    assert found["num_accepted"] == 5
    assert meter.line() == (
        "  games: 3 of 4, stress test, 2 of 3 won (67%), 150 tokens/s, 300 tokens sampled, 900 read, "
        "15 environment steps, 2 s"
    )


def test_plain_lines_come_from_time_to_time_and_at_the_end() -> None:
    clock = Clock()
    view, text = plain(clock)
    with view.progress("training", 1000, Ledger()) as on_progress:
        for step in range(1, 1001):
            clock.now += 1
            on_progress(step, f"loss {step}")
    lines = text.getvalue().splitlines()
    assert lines[0] == "  training: 10 of 1000, loss 10, 10 s, about 16 min 30 s left"
    assert lines[-1] == "  training: 1000 of 1000, loss 1000, 16 min 40 s"
    # Every ten seconds first, every tenth of the time later: a long run leaves a short log.
    assert len(lines) < 60 and len(lines) == len(set(lines))


def test_work_that_ends_early_or_at_once_leaves_one_line_and_none_where_nothing_was_done() -> None:
    view, text = plain(Clock())
    with view.progress("games", 4, Ledger()) as on_progress:
        on_progress(4, total=4)
    assert text.getvalue() == "  games: 4 of 4, 0 s\n"
    with view.progress("nothing", 0, Ledger()):
        pass
    with pytest.raises(RuntimeError), view.progress("broken", 9, Ledger()) as on_progress:
        on_progress(2)
        raise RuntimeError
    assert text.getvalue().splitlines()[1:] == ["  broken: 2 of 9, 0 s"]


def test_quiet_shows_nothing_but_results() -> None:
    view, text = plain(Clock(), "quiet")
    view.say("a stage")
    with view.progress("games", 4, Ledger()) as on_progress:
        counting(on_progress)("episode")
    view.console.print("the table")
    assert text.getvalue() == "the table\n"


def test_work_without_a_known_end_names_its_parts() -> None:
    view, text = plain(Clock())
    with view.working("checking x") as on_part:
        on_part("snapshots[0]")
    assert text.getvalue() == "checking x: snapshots[0]\n"
    view, text = plain(Clock(), "quiet")
    with view.working("checking x") as on_part:
        on_part("snapshots")
    assert text.getvalue() == ""


def test_markup_in_texts_from_outside_is_shown_as_it_is() -> None:
    view, text = plain(Clock())
    view.say("[bold]x[/INST]", style="dim")
    assert text.getvalue() == "[bold]x[/INST]\n"


def test_a_tracker_is_told_after_each_twentieth_and_at_the_end() -> None:
    view, _ = plain(Clock(), "quiet")
    told: list[int] = []
    with view.progress("games", 100, Ledger(), on_share=lambda m: told.append(m.done or 0)) as on_progress:
        for done in range(1, 101):
            on_progress(done)
    assert told == list(range(5, 101, 5))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_view_is_chosen_by_where_the_output_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "STECA_VIEW"):
        monkeypatch.delenv(name, raising=False)
    assert view_mode(is_terminal=True) == "live" and view_mode(is_terminal=False) == "plain"
    monkeypatch.setenv("CI", "true")
    assert view_mode(is_terminal=True) == "plain"
    monkeypatch.setenv("CI", "false")
    assert view_mode(is_terminal=True) == "live"
    monkeypatch.setenv("STECA_VIEW", "quiet")
    assert view_mode(is_terminal=True) == "quiet"
    monkeypatch.setenv("STECA_VIEW", "loud")
    with pytest.raises(ConfigError, match="live, plain or quiet, got 'loud'"):
        view_mode(is_terminal=True)


def test_the_quiet_flag_leaves_results_and_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STECA_VIEW", raising=False)
    command = ["evaluate", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path / 'run'}"]
    assert main([*command, "--quiet"]) == 0
    err = capsys.readouterr().err
    assert "success" in err and "run:" in err and "environment steps" not in err and "games:" not in err
    assert "STECA_VIEW" not in os.environ
    assert main(command[:-1] + [f"run_dir={tmp_path / 'other'}"]) == 0
    err = capsys.readouterr().err
    assert "the expert's games: 4 of 4" in err
    assert re.search(r"games: 4 of 4, stress test: \d+ episodes, 4 of 4 won \(100%\), \d+ environment steps", err)


@pytest.mark.slow
def test_a_terminal_has_a_live_view_and_leaves_only_what_stays(tmp_path: Path) -> None:
    """In a real terminal of 100 columns: a bar while games are played, gone afterwards."""
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "STECA_VIEW")}
    env.update(TERM="xterm-256color", COLUMNS="100", LINES="40")
    command = [sys.executable, "-m", "steca_gym.cli", "collect", *CONF, "env=corridor", "agent=stumbling"]
    process = subprocess.Popen(
        [*command, f"run_dir={tmp_path / 'run'}"], stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=ROOT
    )
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal is closed: the command has ended
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode("utf-8", "replace"))
    assert re.search(r"demonstrations .* 8/8 100%", text) and "8 of 8 won (100%)" in text
    assert "demonstrations: 8 of 8" not in text  # the plain line is for logs
    assert b"\x1b[2K" in seen or b"\x1b[1A" in seen  # the bar was taken away again


@pytest.mark.slow
def test_a_log_file_shows_every_stage_and_nothing_of_other_libraries(tmp_path: Path) -> None:
    """A whole run of a real command whose error stream is a file: two trainings, a calibration, an evaluation."""
    pytest.importorskip("torch", reason="the llm extra is not installed: the log of a training is NOT tested")
    log = tmp_path / "log"
    env = {
        k: v
        for k, v in os.environ.items()
        # transformers prints a line when it is imported with WANDB_MODE=offline
        if k not in ("CI", "STECA_VIEW", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "WANDB_MODE")
    }
    small = [*TINY, "agent.warm_up.precision=fp32", "agent.train.precision=fp32", "agent.warm_up.max_steps=4"]
    small += ["agent.warm_up.num_epochs=null", "env.num_train_tasks=4", "env.num_eval_tasks=2"]
    command = [sys.executable, "-m", "steca_gym.cli", "run", *CONF, *small, f"run_dir={tmp_path / 'run'}"]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, env=env, cwd=ROOT, check=False, text=True)
    text = log.read_text(encoding="utf-8")
    assert done.returncode == 0, text
    for line in (
        r"  demonstrations: 4 of 4, 4 of 4 won \(100%\), \d+ environment steps",
        r"  training warm_up: 4 of 4, loss [\d.]+, \d+ s",
        r"  4 steps on 4 samples, [\d,]+ tokens, [\d,]+ tokens/s, fp32",
        r"  calibration: 4 of 4, \d+ deviations, \d+ accepted, \d+ continuations, [\d,]+ tokens/s",
        r"  training train: 3 of 3, loss [\d.]+",
        r"  games: 2 of 2, \d of 2 won \(\d+%\), [\d,]+ tokens/s, [\d,]+ tokens sampled",
    ):
        assert re.search(f"^{line}", text, re.MULTILINE), (line, text)
    for foreign in ("Loading weights", "it/s", "Warning", "\r", "\x1b"):
        assert foreign not in text, foreign
    assert done.stdout == ""


def test_money_is_shown_where_prices_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    ledger = Ledger()
    meter = Meter("games", 4, ledger, clock=lambda: now[0], prices=Prices(currency="EUR", sampled_tokens=2.0, hour=3.6))
    ledger.cost.num_sampled_tokens += 500_000
    now[0] = 100.0
    meter.update(2)
    assert meter.figures()["money"] == pytest.approx(1.0 + 0.1)
    assert ", 1.10 EUR, 1 min 40 s" in meter.line()
    assert "money" not in Meter("games", 4, ledger).figures()
    prices = tmp_path / "prices.yaml"
    prices.write_text("{currency: EUR, hour: 36000}")
    args = ["evaluate", "agent=random", "preset=smoke", f"runs_root={tmp_path / 'runs'}", f"prices={prices}"]
    assert main(args) == 0
    assert re.search(r"evaluation: .*, [\d.,]+ EUR", capsys.readouterr().err)
    prices.write_text("{sampled: 1}")
    assert main(args) == 2
    assert "sampled" in capsys.readouterr().err
