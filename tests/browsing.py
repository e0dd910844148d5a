"""A headless Chromium for tests of pages: how it starts, waits, takes pictures, and checks accessibility."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
AXE = "axe-core@4.14.1"


@contextmanager
def chromium() -> Iterator[Any]:
    """A started browser; skips, loudly, without playwright or a Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="SKIPPED: pages in a browser need playwright")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"SKIPPED: pages in a browser need {CHROMIUM}; set CHROMIUM or install chromium")
    with sync_api.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def until(page: Any, condition: str, argument: Any = None) -> None:
    """Wait until a function is true; Playwright's own way needs eval, which the page's policy forbids."""
    for _ in range(600):
        try:
            if page.evaluate(condition, argument):
                page.wait_for_load_state()  # its script listens
                return
        except Exception as error:
            if "context was destroyed" not in str(error):  # the page is being left
                raise
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition} ({argument!r})")


def keep(page: Any, name: str) -> None:
    """Take a picture where ``SCREENSHOTS`` names a folder."""
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")


@functools.cache
def axe_script() -> str:
    """The accessibility checker's script; skips, loudly, where it cannot be fetched."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("SKIPPED: the accessibility check needs npm for axe-core")
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, text=True)
        if packed.returncode:
            pytest.skip(f"SKIPPED: npm cannot fetch {AXE}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            script = archive.extractfile("package/axe.min.js")
            assert script is not None
            return script.read().decode()


def axe_findings(page: Any) -> list[tuple[str, str, str]]:
    """Serious and critical findings on the page as it is shown: rule, element, what to do."""
    page.evaluate(axe_script())
    return [
        (v["id"], v["nodes"][0]["html"][:200], v["nodes"][0].get("failureSummary", "")[:300])
        for v in page.evaluate("axe.run()")["violations"]
        if v["impact"] in ("serious", "critical")
    ]
