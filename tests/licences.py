"""Write docs/licences.md: the licence of every package that an install of steca-gym brings, by extra.

``python -m tests.licences`` reads what is installed, so run it where all extras are (``make licences``).
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = "base"
TOOLS = ("dev", "docs")
"""extras for working on steca-gym itself"""
UNLISTED = ("peers", "supply")
"""extras of one benchmark and of the releases"""

_GPL = re.compile(r"\b[AL]?GPL|general public license|lesser general public", re.IGNORECASE)
_LESSER = re.compile(r"\bLGPL|lesser", re.IGNORECASE)
_STATED = {"textworld": "MIT"}
"""licences that a package states in its licence file only"""

HEAD = """\
# Licences

steca-gym is under Apache-2.0. Its wheel also holds the builds of Vega, Vega-Lite and Vega-Embed that the report needs
(BSD-3-Clause, with their licence beside them). An install brings the packages below, each under its own licence.
`make licences` writes this page from what is installed. A package stands where it is needed first: in the base install,
then in the extras.

Nothing that the base install and the extras `llm` and `wandb` bring is under a GPL. Some worlds are, and are extras.

Packages of other platforms are not listed. Among them are NVIDIA's CUDA libraries (`nvidia-*`, `cuda-*`), which are not
free software; the usual torch for Linux brings them, a CPU build does not.

"""


def requirements(extra: str) -> list[Requirement]:
    """What pyproject.toml names for an extra, or for the base install."""
    named = PROJECT["dependencies"] if extra == BASE else PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in named]


def closure(wanted: Iterable[Requirement]) -> tuple[dict[str, metadata.Distribution], set[str]]:
    """Installed distributions that requirements lead to on this platform, by name, and names that are not installed."""
    found: dict[str, metadata.Distribution] = {}
    missing: set[str] = set()
    waiting, seen = [(r, e) for r in wanted for e in ("", *r.extras)], set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            held = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.add(name)
            continue
        found[name] = held
        for text in held.requires or ():
            inner = Requirement(text)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                waiting += [(inner, e) for e in ("", *inner.extras)]
    return found, missing


def licence(held: metadata.Distribution) -> str:
    """A distribution's licence in one line: its SPDX expression, else its classifiers, else the text of the field."""
    about = held.metadata
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    classifiers = [c.rsplit(" :: ", 1)[1] for c in about.get_all("Classifier", []) if c.startswith("License :: ")]
    text = (about.get("License") or "").strip()
    if text and text != "UNKNOWN" and "\n" not in text and len(text) <= 60:
        return text
    if classifiers:
        return ", ".join(classifiers)
    first = text.strip("# ").splitlines()[0].strip("# ") if text and text != "UNKNOWN" else ""
    return first or _STATED.get(canonicalize_name(about["Name"]), "not stated")


def statements(held: metadata.Distribution) -> str:
    """Everything that a distribution says about its licence, in one text."""
    about = held.metadata
    fields = [about.get("License-Expression") or "", (about.get("License") or "").strip()[:200]]
    return "\n".join([*fields, *(c for c in about.get_all("Classifier", []) if c.startswith("License :: "))])


def is_gpl(held: metadata.Distribution) -> bool:
    """Whether a distribution is under a GPL or an AGPL; the LGPL counts as well, so that somebody looks at it."""
    return _GPL.search(statements(held)) is not None


def kind(held: metadata.Distribution) -> str:
    """A remark on copyleft licences."""
    stated = statements(held)
    if _GPL.search(stated):
        return "LGPL" if _LESSER.search(stated) else "GPL"
    return "file-level copyleft" if re.search(r"\bMPL|Mozilla", stated) else ""


def page() -> tuple[str, set[str]]:
    """The page, and the packages that it lacks because they are not installed."""
    lines, listed, lacking = [HEAD], set(), set()
    extras = [e for e in PROJECT["optional-dependencies"] if e not in (*TOOLS, *UNLISTED)]
    for extra in (BASE, *extras, *TOOLS):
        found, missing = closure(requirements(extra))
        lacking |= missing
        new = sorted(set(found) - listed)
        if not new:
            continue
        listed |= set(new)
        title = "Base install" if extra == BASE else f"Extra `{extra}`"
        lines.append(f"## {title}\n\n| package | licence | |\n|---|---|---|\n")
        lines += [f"| {name} | {licence(found[name])} | {kind(found[name])} |\n" for name in new]
        lines.append("\n")
    if lacking:
        lines.append(f"Not listed, as they were not installed: {', '.join(sorted(lacking))}.\n")
    return "".join(lines).rstrip() + "\n", lacking


def main() -> int:
    """Write the page; says which packages it lacks."""
    text, lacking = page()
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    if lacking:
        print(f"not installed here, so not listed: {', '.join(sorted(lacking))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
