"""Ctrl-C and SIGTERM on real processes: they end with one line that says how to go on, whatever hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANGS = """
import signal, sys, time

def obeys(args):
    print("ready", flush=True)
    while True:
        time.sleep(60)

def catches(args):
    lines = ["ready"]
    while True:
        try:
            while lines:
                print(lines.pop(), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            lines.append("caught")  # printed inside the try, so that the next signal is caught as well

def spins(args):
    import hashlib
    lines = ["ready"]
    while True:
        try:
            while lines:
                print(lines.pop(), flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # compiled code, minutes long, that looks at no signal
        except KeyboardInterrupt:
            pass  # it came before that began

def has_a_child(args):
    import subprocess
    grandchild = "import time; time.sleep(600)"
    child = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {grandchild!r}]);"
        "print(p.pid, flush=True); p.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    print("ready", process.pid, process.stdout.readline().strip(), flush=True)
    catches(args)
"""


def start(folder: Path, *args: str, grace_s: float = 0.5) -> subprocess.Popen[str]:
    (folder / "odd_hangs.py").write_text(HANGS)
    # A background process of a shell ignores Ctrl-C; this one has to hear it.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"import steca_gym.cli.stopping as s; s.GRACE_S = {grace_s};"
        "from steca_gym.cli import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline().split()
    assert line[0] == "ready"
    return line


@pytest.mark.parametrize(
    ("function", "number", "code", "line"),
    [
        ("obeys", signal.SIGINT, 130, "steca: interrupted; the same command continues from here"),
        ("obeys", signal.SIGTERM, 143, "steca: terminated; the same command continues from here"),
        ("catches", signal.SIGINT, 130, "steca: stopped: something still ran 0.5 s after the signal; the same"),
        ("catches", signal.SIGTERM, 143, "steca: stopped: something still ran 0.5 s after the signal; the same"),
        ("spins", signal.SIGINT, 130, "steca: stopped: something still ran 0.5 s after the signal; the same"),
        ("spins", signal.SIGTERM, 143, "steca: stopped: something still ran 0.5 s after the signal; the same"),
    ],
)
def test_a_signal_ends_it(tmp_path: Path, function: str, number: signal.Signals, code: int, line: str) -> None:
    with start(tmp_path, f"odd_hangs:{function}") as process:
        ready(process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert line in err and "Traceback" not in err.partition("steca:")[0]


def test_a_second_ctrl_c_ends_it_at_once_with_its_children(tmp_path: Path) -> None:
    with start(tmp_path, "odd_hangs:has_a_child", grace_s=600) as process:
        started = [int(pid) for pid in ready(process)[1:]]
        ready(process)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.readline() == "caught\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("stopped at the second Ctrl-C; the same command continues from here\n")
    if sys.platform.startswith("linux"):
        end = time.monotonic() + 60
        while any(map(is_running, started)):
            assert time.monotonic() < end
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_an_endpoint_that_never_answers_does_not_hold_a_run(tmp_path: Path) -> None:
    """The server takes connections and says nothing; the run waits for an answer when the signal comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        agent = ["agent=openai", "agent.engine.model=none", f"agent.engine.base_url={url}"]
        few = ["env=household", "env.num_eval_tasks=2", f"run_dir={tmp_path / 'run'}"]
        with start(tmp_path, "evaluate", *few, *agent, grace_s=8.0) as process:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err[-2000:]
    assert "the same command continues from here" in err.splitlines()[-1]


@pytest.mark.slow
def test_ray_does_not_take_the_signal_away(tmp_path: Path) -> None:
    """Ray sets a handler of its own when it begins; SIGTERM still ends the run as everywhere else."""
    pytest.importorskip("ray")
    command = ["collect", "method=sft", "executor=ray", "executor.num_workers=1", "env.num_train_tasks=200000"]
    with start(tmp_path, *command, f"run_dir={tmp_path / 'run'}", grace_s=8.0) as process:
        buffer, end = tmp_path / "run" / "buffer.sqlite", time.monotonic() + 240
        while not buffer.exists():  # the workers play
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err[-2000:]
    assert "the same command continues from here" in err.splitlines()[-1]
