"""`steca compare methods=[sft,rft,steca] ...`: several methods on the same settings and seed, and their table.

  steca compare env=alfworld experiment=alfworld_tiny methods=[sft,steca]

Takes the overrides of `steca run`. Stages with equal settings are shared; the table with paired comparisons on the
same games is printed and written into the runs' root.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steca_gym.cli.composing import compose, explain_overrides
from steca_gym.cli.jobs import opened, show, sweep_name
from steca_gym.cli.options import config_dirs, without_config_dirs
from steca_gym.errors import ConfigError, escape_markup

if TYPE_CHECKING:
    from steca_gym.evaluation import EvaluationReport

METHODS = ("sft", "rft", "steca")


def main(args: list[str]) -> int:
    """Run the command."""
    folders = config_dirs(args)
    methods, kept = list(METHODS), []
    for arg in without_config_dirs(args):
        key, _, value = arg.partition("=")
        if key == "methods":
            methods = [m.strip() for m in value.strip("[]").split(",") if m.strip()]
        elif key == "method":
            raise ConfigError(f"compare takes methods=[...], got {arg!r}; e.g. methods=[sft,{value}]")
        elif arg.startswith("-"):
            raise ConfigError(f"compare takes overrides of `steca run`, got {arg!r}; for a sweep use `steca run -m`")
        else:
            kept.append(arg)
    if not methods:
        raise ConfigError("compare needs at least one method, got none; e.g. methods=[sft,steca]")
    if len(set(methods)) != len(methods):
        raise ConfigError(f"methods names one twice: {', '.join(methods)}; for seeds use `steca run -m seed=0,1`")
    if any(a.startswith("run_dir=") for a in kept):
        raise ConfigError("compare plays several runs, and run_dir= names the folder of one; give runs_root=FOLDER")
    for method in methods:
        explain_overrides([*kept, f"method={method}", *(f"--config-dir={d}" for d in folders)])
    compare(kept, methods, folders)
    return 0


def compare(
    overrides: Sequence[str], methods: Sequence[str], folders: Sequence[str] = ()
) -> dict[str, EvaluationReport]:
    """Run each method on the same settings and seed, then print and keep the table.

    The table and the paired comparisons against the first method are written to ``comparison-*.md`` in the runs' root.
    """
    from rich.console import Console

    from steca_gym.files import write_atomically
    from steca_gym.reports import comparison_table, paired_table
    from steca_gym.runs.context import read_config

    console = Console()
    start = time.perf_counter()
    reports: dict[str, EvaluationReport] = {}
    runs: list[Path] = []
    for method in methods:  # all settings are checked before the first run
        read_config(compose([*overrides, f"method={method}"], folders))
    sweep = sweep_name(["-m", f"method={','.join(methods)}", *overrides])
    for method in methods:
        chosen = [*overrides, f"method={method}"]
        with opened(compose(chosen, folders), overrides=chosen, config_dirs=folders, sweep=sweep) as runner:
            console.rule(f"[bold]{escape_markup(method)}[/bold]  {escape_markup(str(runner.folder))}")
            report = runner.play()
            assert report is not None
            show(runner, report)
            runs.append(runner.folder)
            reports[method] = report
    table, markdown = comparison_table(reports)
    paired, paired_markdown = paired_table(reports)
    console.print(table)
    console.print(paired)
    seconds = time.perf_counter() - start
    seed = int(compose(list(overrides), folders).seed)
    path = runs[0].parent / f"comparison-{'-'.join(m.split(':')[-1] for m in methods)}-s{seed}.md"
    write_atomically(path, f"{markdown}\n\n{paired_markdown}\n\n{seconds:.0f} s in all\n")
    console.print(f"{seconds:.0f} s in all; table: {path}; runs: {runs[0].parent}", markup=False)
    return reports
