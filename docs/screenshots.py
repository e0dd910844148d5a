"""Makes the pictures of the documentation from a small, seeded run: ``python -m docs.screenshots``.

Needs playwright and a Chromium (``CHROMIUM``, by default /usr/bin/chromium).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steca_gym.cli import main as steca
from steca_gym.reports.html import HtmlReport
from steca_gym.runs import RunFolder

IMAGES = Path(__file__).parent / "img"
SETTINGS = [
    "--config-dir",
    str(Path(__file__).parents[1] / "tests" / "conf"),
    "env=corridor",
    "agent=stumbling",
    "preset.calibration.value_every_step=true",
    "preset.calibration.detect_fatal=false",
]


def main() -> int:
    """Play the run, write its report, and take the pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "corridor"
        code = steca(["calibrate", *SETTINGS, f"run_dir={run}"])
        if code:
            return code
        report = HtmlReport().render([RunFolder(run)]).write(run / "report.html").as_uri()
        with sync_playwright() as tool:
            browser = tool.chromium.launch(
                executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1180, "height": 820})
            page.goto(report)
            identifier = page.evaluate("ROWS.find((r) => r.calibration === 'accepted').id")
            page.goto(f"{report}#/t/{identifier}")
            page.wait_for_selector(".chart svg")
            page.wait_for_timeout(500)
            page.screenshot(path=IMAGES / "report-timeline.png")
            page.goto(f"{report}#/failures")
            page.wait_for_selector("h1")
            page.wait_for_timeout(500)
            page.screenshot(path=IMAGES / "report-failures.png")
            with reviewing(run) as link:
                page.goto(link)
                page.goto(link.partition("?")[0] + "next")
                page.wait_for_selector(".sides")
                page.screenshot(path=IMAGES / "review-card.png")
            browser.close()
    return 0


@contextmanager
def reviewing(run: Path) -> Iterator[str]:
    """The real command around a run; yields its link."""
    command = [sys.executable, "-m", "steca_gym.cli", "review", str(run), "as=anna"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
