"""What an install without extras can do: ``python -m tests.base_install``, or on its own: ``python base_install.py``.

Writes a run's folder, opens it with the commands that only read, plays an environment, and checks that the commands
that need a language model say in one line what to install. Exits 1 with the first thing that is wrong.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

LARGE = ("torch", "transformers", "trl", "ray", "wandb", "textual", "jinja2", "pandas", "pyarrow")


def steca(*args: str) -> tuple[int, str, str]:
    """Exit code, output and error output of a command."""
    from steca_gym.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(args))
    return code, out.getvalue(), err.getvalue()


def make_run(folder: Path) -> None:
    """A run of two trajectories."""
    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.runs.folder import FORMAT
    from steca_gym.trajectory import Step, Trajectory

    folder.mkdir(parents=True)
    record = {"format": FORMAT, "version": "0.1.0", "method": "steca", "seed": 0, "overrides": [], "stages": {}}
    (folder / "run.json").write_text(json.dumps({**record, "settings": {"env": {"id": "lamp"}, "seed": 0}}))
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        for number in range(2):
            step = Step(thought="I look.", action="look", observation="A lamp.")
            played = Trajectory(task_id=f"t{number}", first_observation="A room.", steps=(step,), won=True)
            buffer.add_trajectories([played.with_id()], kind="expert")


def main() -> int:
    """Run the checks; returns the exit code."""
    present = [name for name in LARGE if find_spec(name) is not None]
    if present:
        print(f"this is no base install: it has {', '.join(present)}")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "runs", "mine")
        make_run(run)
        for args in (
            ("report", str(run)),
            ("table", str(run)),
            ("inspect", str(run), "--plain"),
            ("inspect", str(run), "show=t0"),
            ("export", f"run={run}", f"to={scratch}/out"),
            ("run", "--help"),
        ):
            code, out, err = steca(*args)
            if code or not out.strip():
                print(f"steca {args[0]} ended with {code}: {err or out}")
                return 1
        if "A lamp." not in steca("inspect", str(run), "show=t0")[1]:
            print("inspect does not show the trajectory")
            return 1
        for args in (
            ("evaluate", f"model={scratch}/none"),
            ("train", f"run_dir={scratch}/b"),
            ("demo", f"runs_root={scratch}"),
        ):
            code, out, err = steca(*args)
            last = err.strip().splitlines()[-1] if err.strip() else ""
            if code != 2 or "Traceback" in err or "Error executing" in err or "pip install 'steca-gym[" not in last:
                print(f"steca {args[0]} ended with {code}, expected one line that names the extra: {err or out}")
                return 1
    print("the base install opens, reports, exports and plays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
