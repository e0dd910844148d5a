"""``steca run --help``: every group with its choices, and every key with its value and its comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steca_gym.cli.composing import compose, conf_roots, group_choices, groups

_LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")

_PACKAGE = re.compile(r"# @package ([\w.]+)")


def run_help(overrides: Sequence[str], folders: Sequence[str]) -> str:
    """The text for the composed configuration."""
    from omegaconf import OmegaConf

    cfg = compose(overrides, folders)
    lines = ["Groups and their choices (group=choice):"]
    for group in sorted(groups(folders)):
        lines.append(f"  {group}: {', '.join(group_choices(group, folders))}")
    lines += ["", "Keys, with their values here (key=value):"]
    comments = _comments(folders, chosen_files(overrides, folders))
    for key, value in _flat(OmegaConf.to_container(cfg, resolve=False)):
        comment = comments.get(key, "")
        text = f"  {key}={value}"
        lines.append(f"{text:<58} # {comment}" if comment else text)
    return "\n".join(lines)


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            yield name, text if len(text) <= 60 else text[:57] + "..."


def chosen_files(overrides: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """The choice in each group: of the command, else the default of ``config.yaml``."""
    from omegaconf import OmegaConf

    root = conf_roots(())[0]
    chosen: dict[str, str] = {}
    loaded = OmegaConf.to_container(OmegaConf.load(root / "config.yaml"))
    assert isinstance(loaded, dict)
    for entry in loaded["defaults"]:
        if not isinstance(entry, str):
            chosen.update({str(k).removeprefix("optional "): str(v) for k, v in entry.items()})
    for override in overrides:
        group, _, value = override.partition("=")
        if group in groups(folders):
            chosen[group] = "custom" if ":" in value else value
    return chosen


def _comments(folders: Sequence[str], chosen: dict[str, str]) -> dict[str, str]:
    """The comment of each key: on its line, or in the lines above it.

    Files of the choices that are made say it first; other files of the group only where those are silent.
    """
    found: dict[str, str] = {}
    files = [f for root in conf_roots(folders) for f in sorted(root.rglob("*.yaml"))]
    for file in sorted(files, key=lambda f: chosen.get(f.parent.name) != f.stem):
        group = "" if file.parent in conf_roots(folders) else file.parent.name
        inside = _file_comments(file)
        if (package := _PACKAGE.match(file.read_text(encoding="utf-8"))) is not None:
            group = package[1]
        # Groups that an agent takes under keys of its own.
        taken = {"training": ("warm_up", "train"), "lora": ("lora",)}.get(group, ())
        if taken:
            for stage in taken:
                found.update({f"agent.{stage}.{k}": c for k, c in inside.items()})
        for key, comment in inside.items():
            found.setdefault(f"{group}.{key}" if group else key, comment)
    return found


def _file_comments(file: Path) -> dict[str, str]:
    """Comments by dotted key. The lines at the top describe the file, not its first key."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    at_top = True
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            if not at_top:
                above.append(line.lstrip("# ").strip())
            continue
        at_top = False
        match = _LINE.match(line)
        if match is None:
            above = []
            continue
        indent = len(match["indent"])
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, match["key"]))
        comment = match["comment"] or " ".join(above)
        if comment:
            found[".".join(key for _, key in stack)] = comment
        above = []
    return found
