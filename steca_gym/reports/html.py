"""The report as one HTML file that needs no network: data as JSON, a script, and the charting library inside.

The page holds no markup that comes from a world or a model: their texts are JSON (ASCII, without ``<``), and the script
puts them into the page as text only. On top of that, a content security policy admits exactly the scripts of this
package, by their hashes, and no connection at all.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from steca_gym.prices import Prices
from steca_gym.reports.base import Page
from steca_gym.reports.data import report_data
from steca_gym.reports.text import MAX_CHARS, visible
from steca_gym.runs.folder import RunFolder

SCRIPTS = (
    "vendor/vega.min.js",
    "vendor/vega-lite.min.js",
    "vendor/vega-embed.min.js",
    "charts.js",
    "views.js",
    "page.js",
)
MAX_PAGE_CHARS = 100_000_000
"""size of the details, before compression, from which on texts are cut much shorter, so that the page still opens"""
SHORT_CHARS = 400
CHUNK = 20
"""trajectories that are compressed together, and unpacked when one of them is opened"""


class HtmlReport:
    """One self-contained HTML file."""

    prices: Prices | None = None
    """for amounts of money; None: none are shown"""

    def render(self, runs: Sequence[RunFolder]) -> Page:
        """Make the page; see ``steca_gym.reports.base.Report``."""
        data = report_data(runs, self.prices)
        names = ", ".join(run.name for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        blocks = [
            _data("summary", to_script_json({**data.summary, "chunk": CHUNK})),
            _data("rows", to_script_json(data.rows)),
            *_packed(data.details),
        ]
        scripts = [_asset(name) for name in SCRIPTS]
        hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
        policy = (
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
            "form-action 'none'"
        )
        title = html.escape(visible(f"{names} · steca report", 200))
        return Page(
            text="\n".join(
                [
                    "<!doctype html>",
                    '<html lang="en"><head><meta charset="utf-8">',
                    f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                    '<meta name="viewport" content="width=device-width, initial-scale=1">',
                    f"<title>{title}</title>",
                    '<link rel="icon" href="data:,">',
                    f"<style>{_asset('page.css')}</style></head>",
                    _asset("body.html"),
                    *blocks,
                    *(f"<script>{script}</script>" for script in scripts),
                    "</body></html>\n",
                ]
            )
        )


def _packed(details: Sequence[Any]) -> Iterator[str]:
    """The details in compressed chunks: turns repeat themselves, and a page of them opens several times faster."""
    size = 0
    for number, start in enumerate(range(0, len(details), CHUNK)):
        texts = []
        for detail in details[start : start + CHUNK]:
            texts.append(to_script_json(detail, MAX_CHARS if size < MAX_PAGE_CHARS else SHORT_CHARS))
            size += len(texts[-1])
        packed = gzip.compress(f"[{','.join(texts)}]".encode("ascii"), compresslevel=6, mtime=0)
        yield _data(f"c{number}", base64.b64encode(packed).decode("ascii"), kind="application/octet-stream")


def to_script_json(value: Any, max_chars: int = MAX_CHARS) -> str:
    """JSON that is safe inside a script element: ASCII only, without ``<``, ``>`` and ``&``.

    Texts are made visible and cut; NaN and infinities become null.
    """
    text = json.dumps(_clean(value, max_chars), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _clean(value: Any, max_chars: int) -> Any:
    if isinstance(value, str):
        return visible(value, max_chars)
    if isinstance(value, dict):
        return {visible(str(k), 200): _clean(v, max_chars) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v, max_chars) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _data(name: str, text: str, kind: str = "application/json") -> str:
    return f'<script type="{kind}" id="data-{name}">{text}</script>'


def _asset(name: str) -> str:
    text = (files("steca_gym.reports") / "assets" / name).read_text(encoding="utf-8")
    if name.endswith(".js") and "</script" in text.lower():
        raise ValueError(f"{name} would end its own script element")
    return text


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
