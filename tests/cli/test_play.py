"""`steca play`: through a real terminal (a pty), and by other agents."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from steca_gym.cli import main
from steca_gym.trajectory import read_jsonl

pty = pytest.importorskip("pty", reason="SKIPPED: no pseudo-terminals on this system")

ROOT = Path(__file__).resolve().parents[2]
CONF = ["--config-dir", str(ROOT / "tests" / "conf")]

WORLD = '''
"""A corridor whose words attack the terminal."""
from steca_gym import Outcome, World, register_world


class Evil(World):
    name, version, can_save = "evil", "1", True

    def task_ids(self, split):
        return ("one", "two", "three")

    def start(self, task_id, seed):
        self.place, self.goal_text = 0, task_id
        return Outcome(observation=f"Task {task_id}. \\x1b]0;owned\\x07\\x1b[2JA door.")

    def act(self, action):
        valid = action in ("walk\\x1b[31m", "open")
        self.place += action == "walk\\x1b[31m"
        won = action == "open" and self.place >= 2
        return Outcome(observation=f"place {self.place}\\r{action}", score=float(won), won=won, over=won, valid=valid)

    def admissible_actions(self):
        return ("walk\\x1b[31m", "open")

    def save(self):
        return self.place, self.goal_text

    def load(self, token):
        self.place, self.goal_text = token

    goal = "out"


register_world("me/Evil-v0", Evil, horizon=6)
'''
CONFIG = """
id: evil_world:me/Evil-v0
kwargs: {}
prompt: {instruction: "", examples: []}
train_split: train
eval_split: train
"""


class Terminal:
    """A `steca play` whose terminal we hold."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.master, slave = pty.openpty()
        (folder / "conf" / "env").mkdir(parents=True, exist_ok=True)
        (folder / "evil_world.py").write_text(WORLD)
        (folder / "conf" / "env" / "evil.yaml").write_text(CONFIG)
        # A dumb terminal, so that the line editor itself sends no escapes.
        env = {**os.environ, "TERM": "dumb", "PYTHONUTF8": "1", "COLUMNS": "100"}
        command = [sys.executable, "-m", "steca_gym.cli", "play", "env=evil", "--config-dir", "conf", *args]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=env,
            start_new_session=True,
            close_fds=True,
        )
        os.close(slave)
        self.screen = ""

    def read(self, timeout_s: float) -> bool:
        """Read what has come; False at the end, and where nothing comes in time."""
        if not select.select([self.master], [], [], timeout_s)[0]:
            return False
        try:
            chunk = os.read(self.master, 4096)
        except OSError:  # the other side is closed
            return False
        self.screen += chunk.decode("utf-8", "replace")
        return bool(chunk)

    def until(self, text: str, after: int = 0) -> int:
        """Read until a text has come; returns the place after it."""
        while text not in self.screen[after:]:
            assert self.read(120), f"nothing more comes before {text!r}: {self.screen}"
        return self.screen.index(text, after) + len(text)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def play(self, lines: Sequence[str]) -> None:
        at = 0
        for line in lines:
            at = self.until("\n> ", at)
            self.type(line)

    def end(self) -> int:
        while self.read(120):
            pass
        return self.process.wait(timeout=120)

    def interrupt(self, number: signal.Signals) -> int:
        """Send a signal until the process ends; one that comes just before the line editor waits is seen later."""
        for _ in range(20):
            self.process.send_signal(number)
            while self.read(1):
                pass
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=5)
        raise AssertionError(f"{number} does not end it: {self.screen}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    opened: list[Terminal] = []

    def make(*args: str) -> Terminal:
        opened.append(Terminal(tmp_path, *args))
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.close()


@pytest.mark.slow
def test_a_person_plays_leaves_goes_on_and_the_wins_are_demonstrations(start, tmp_path: Path, capsys) -> None:
    terminal = start("to=mine.jsonl", "agent.engine.player=anna", "seed=3")
    # A number, a prefix, a thought, and the end of a file in the second task.
    terminal.play(["1\n", "w\n", "think: through the door\n", "op\n", "1\n", "\x04"])
    assert terminal.end() == 0
    shown = terminal.screen.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
    assert "\x1b" not in shown and "\x07" not in shown and "\rwalk" not in shown
    assert "⟨U+001B⟩]0;owned⟨U+0007⟩" in shown and "1 walk⟨U+001B⟩[31m" in shown and "place 1⟨U+000D⟩walk" in shown
    (won,) = read_jsonl(tmp_path / "mine.jsonl")
    assert won.won and won.agent == "human:anna" and won.actions == ("walk\x1b[31m", "walk\x1b[31m", "open")
    assert [s.source for s in won.steps] == ["expert"] * 3 and won.steps[2].thought == "through the door"
    (left,) = read_jsonl(tmp_path / "mine.not-won.jsonl")
    assert left.status == "running" and left.actions == ("walk\x1b[31m",) and left.task_id != won.task_id
    # The same command goes on in the task that was left, and not with the one that was won.
    again = start("to=mine.jsonl", "agent.engine.player=anna", "seed=3")
    again.play(["1\n", "open\n", ":skip\n"])
    assert again.end() == 0 and "continued after 1 steps" in again.screen and won.task_id not in again.screen
    assert [t.task_id for t in read_jsonl(tmp_path / "mine.jsonl")] == [won.task_id, left.task_id]
    # What was stored is read by `steca import` (and so by expert=imported, which reads what import wrote).
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "steca_gym.cli",
            "import",
            "mine.jsonl",
            "env=evil",
            "to=in.jsonl",
            "--config-dir",
            "conf",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "2 of 2 demonstrations" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_game_is_stored(start, tmp_path: Path, number: signal.Signals) -> None:
    terminal = start("to=mine.jsonl")
    terminal.play(["1\n"])
    terminal.until("\n> ", terminal.until("place 1"))
    # The terminal is not the process's controlling one, so that Ctrl-C has to come as the signal that it sends.
    assert terminal.interrupt(number) == 130
    (left,) = read_jsonl(tmp_path / "mine.not-won.jsonl")
    assert left.status == "running" and len(left.steps) == 1 and "Traceback" not in terminal.screen


def test_other_agents_play_too_and_a_run_takes_their_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["play", "env=corridor", "agent=expert", "num_tasks=3", *CONF]
    assert main(command) == 0
    demos = list(read_jsonl(tmp_path / "demos.jsonl"))
    assert len(demos) == 3 and all(t.won for t in demos)
    assert "3 won in demos.jsonl, 0 other episodes" in capsys.readouterr().out
    assert main(command) == 0 and "nothing to play" in capsys.readouterr().out
    run = ["collect", "env=corridor", "method=sft", "expert=imported", "expert.path=demos.jsonl", "run_dir=run", *CONF]
    assert main(run) == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "num_won" in json.dumps(recorded) and "3 of 3 imported demonstrations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "play needs a world"),
        (["env=corridor", "num_tasks=0"], 2, "num_tasks must be a whole number >= 1, got '0'"),
        (["env=corridor", "to="], 2, "to= names no file"),
        (["env=corridor", "agent=tiny"], 2, "is trained before it plays"),
        (["env=corridor", "task=nowhere"], 3, "has no task 'nowhere'"),
        (["env=corridor", "split=moon"], 2, "no split 'moon'"),
        (["env=corridor", "--out", "x"], 2, "got '--out'"),
        (["env=corridor", "agent.engine.max_listed=0"], 2, "max_listed must be a whole number >= 1"),
        (["env=household", "to=corridor.jsonl"], 3, "choose another file with to=..."),
    ],
)
def test_bad_input_is_one_line(
    args: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = '{"task_id": "t", "first_observation": "o", "fingerprint": "corridor/1+none", "steps": [], "won": true}'
    Path("corridor.jsonl").write_text(line + "\n")
    assert main(["play", *args, *CONF]) == code
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1
