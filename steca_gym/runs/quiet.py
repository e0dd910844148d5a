"""Keeps other libraries' progress bars and warnings out of the view of a run; the warnings go to a log file instead."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

LOG = "log.txt"
"""file in the run's folder: warnings of other libraries; only where there are any"""

# Read by the libraries when they are imported. A user's own value holds.
_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
_VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
"""of libraries that, when they are imported in the block, would write warnings to the error stream"""
_LOGGERS = ("transformers", "datasets", "huggingface_hub", "accelerate", "trl", "peft", "sentence_transformers")
"""libraries whose loggers write to the error stream by themselves"""


def no_progress_bars() -> None:
    """Switch off the progress bars of tqdm, huggingface_hub, transformers and datasets, imported already or not."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] != "1":
        return
    # Without importing what a run may not need; a library that is just being imported has no such function yet.
    for module, function in (
        ("huggingface_hub.utils", "disable_progress_bars"),
        ("transformers.utils.logging", "disable_progress_bar"),
        ("datasets.utils.logging", "disable_progress_bar"),
        ("datasets", "disable_progress_bars"),
    ):
        with contextlib.suppress(AttributeError, KeyError):
            getattr(sys.modules[module], function)()


@contextlib.contextmanager
def undisturbed(folder: Path) -> Iterator[None]:
    """Inside the block, other libraries' warnings go to ``log.txt`` in the folder; ours and a user's get one line."""
    no_progress_bars()
    for name in _VERBOSITY:
        os.environ.setdefault(name, "error")
    handler = logging.FileHandler(folder / LOG, encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    held = {name: logging.getLogger(name).handlers[:] for name in _LOGGERS}
    written = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        text = " ".join(str(message).split())
        if is_foreign(filename):
            logging.getLogger("warnings").warning("%s:%d: %s: %s", filename, lineno, category.__name__, text)
            return ""
        return f"steca: warning: {text}\n"

    root.addHandler(handler)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [] if logger.propagate else [handler]
    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = written
        for name, handlers in held.items():
            logging.getLogger(name).handlers[:] = handlers
        root.removeHandler(handler)
        handler.close()


def is_foreign(filename: str) -> bool:
    """Whether a file belongs to an installed library or to Python, and not to steca_gym or to the user."""
    import steca_gym

    path = Path(filename)
    own = {Path(steca_gym.__file__).parent}
    for room in ("envs", "agents"):
        module = sys.modules.get(f"steca_gym.{room}")
        if module is not None and module.__file__ is not None:
            own.add(Path(module.__file__).parent)
    if any(path.is_relative_to(folder) for folder in own):
        return False
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return path.is_relative_to(sysconfig.get_paths()["stdlib"]) or filename.startswith("<frozen")
