"""Other libraries neither draw bars into the view nor warn in between; what they said is kept."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from steca_gym.runs.quiet import LOG, is_foreign, no_progress_bars, undisturbed

ROOT = Path(__file__).parents[2]


def test_foreign_warnings_go_to_the_log_and_ours_are_one_line(tmp_path: Path) -> None:
    code = f"""
import sys, warnings, logging
from pathlib import Path
from steca_gym.runs.quiet import undisturbed
logging.getLogger("transformers").propagate = False  # as transformers does
with undisturbed(Path({str(tmp_path)!r})):
    warnings.warn_explicit("this will be\\nremoved", FutureWarning, "/x/site-packages/lib/a.py", 3)
    warnings.warn("yours")
    logging.getLogger("some.library").warning("from a logger")
    logging.getLogger("transformers").warning("from transformers")
    logging.getLogger("some.library").info("not worth it")
warnings.warn("later")
"""
    env = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=ROOT)
    first, *rest = done.stderr.splitlines()
    assert first == "steca: warning: yours" and "UserWarning: later" in rest[0]
    log = (tmp_path / LOG).read_text(encoding="utf-8").splitlines()
    assert [line.partition("WARNING ")[2] for line in log] == [
        "warnings: /x/site-packages/lib/a.py:3: FutureWarning: this will be removed",
        "some.library: from a logger",
        "transformers: from transformers",
    ]


def test_nothing_said_leaves_no_file_and_everything_is_put_back(tmp_path: Path) -> None:
    written, handlers = warnings.formatwarning, logging.getLogger().handlers[:]
    theirs = logging.getLogger("transformers").handlers[:]
    with undisturbed(tmp_path):
        pass
    assert not (tmp_path / LOG).exists()
    assert warnings.formatwarning is written and logging.getLogger().handlers == handlers
    assert logging.getLogger("transformers").handlers == theirs


def test_whose_file_a_warning_is_about(tmp_path: Path) -> None:
    import steca_gym.agents

    assert not is_foreign(str(ROOT / "steca_gym" / "tracking" / "guard.py"))
    assert not is_foreign(str(steca_gym.agents.__file__))
    assert not is_foreign(str(tmp_path / "my_module.py"))
    assert (
        is_foreign(str(logging.__file__))
        and is_foreign("/x/lib/site-packages/torch/a.py")
        and is_foreign("<frozen os>")
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_bars_are_off_whether_libraries_are_imported_before_or_after(when: str) -> None:
    pytest.importorskip("transformers", reason="the llm extra is not installed: bars of transformers are NOT tested")
    imports = "import transformers.utils.logging as t; from tqdm.auto import tqdm"
    lines = ["from steca_gym.runs.quiet import no_progress_bars; no_progress_bars()", imports]
    code = "\n".join(lines if when == "after" else lines[::-1]) + "\nprint(t.is_progress_bar_enabled())"
    # tqdm itself reads its setting when it is imported.
    code += "\nprint(tqdm([]).disable)" if when == "after" else "\nprint(True)"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TQDM", "HF_HUB_DISABLE"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["False", "True"]


def test_a_users_own_choice_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    no_progress_bars()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0" and os.environ["TQDM_DISABLE"] == "1"
