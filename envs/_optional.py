"""Optional packages of the worlds and the folder of their caches.

Knows how a missing extra is explained. Knows no world.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from steca_gym.errors import ConfigError


def require(module: str, install: str) -> Any:
    """Import an optional module; raises ConfigError with the install command when it is missing.

    Args:
        module: dotted name of the module.
        install: what to type after ``pip install``, e.g. ``'"steca-gym[babyai]"'``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"module {module!r} cannot be imported ({error}); install it with: pip install {install}"
        ) from error


@functools.cache
def installed_version(distribution: str) -> str:
    """The installed version of a distribution, or ``"missing"``; looked up once (0.14 ms, and every step asks)."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"


def cache_dir(world: str) -> Path:
    """The user's cache folder of a world; not created.

    It lies in $STECA_CACHE, else $XDG_CACHE_HOME/steca-gym, else ~/.cache/steca-gym.
    """
    chosen = os.environ.get("STECA_CACHE")
    if chosen:
        return Path(chosen) / world
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "steca-gym" / world


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that another process sees the whole of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


@contextmanager
def global_random_untouched() -> Iterator[None]:
    """Put the states of ``random`` and ``numpy.random`` back, whatever the block did to them."""
    import random

    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
