"""Several methods from one warm-up, side by side: their runs, a table, and paired comparisons on the same games.

Knows how runs are put next to each other. Knows nothing of what a method does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from steca_gym.run import Run, execute, write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from steca_gym.evaluation import EvaluationReport


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the packaged configuration without Hydra's command line."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("steca_gym.conf", version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    finally:
        GlobalHydra.instance().clear()


def compare(overrides: Sequence[str], methods: Sequence[str]) -> dict[str, EvaluationReport]:
    """Run each method on the same settings and seed, then print and keep the table.

    The table and the paired comparisons against the first method are written to ``comparison-*.md`` in the runs' root.
    """
    from rich.console import Console

    from steca_gym.evaluation import EvaluationReport, comparison_table, paired_table

    console = Console()
    start = time.perf_counter()
    reports: dict[str, EvaluationReport] = {}
    folders: list[Path] = []
    for method in methods:
        chosen = [*overrides, f"method={method}"]
        run = Run.open(compose(chosen), overrides=chosen)
        console.rule(f"[bold]{method}[/bold]  {run.folder}")
        execute(run)
        folders.append(run.folder)
        reports[method] = EvaluationReport.from_dict(json.loads((run.folder / "evaluation.json").read_text()))
    table, markdown = comparison_table(reports)
    paired, paired_markdown = paired_table(reports)
    console.print(table)
    console.print(paired)
    seconds = time.perf_counter() - start
    seed = int(compose(overrides).seed)
    path = folders[0].parent / f"comparison-{'-'.join(methods)}-s{seed}.md"
    write_atomically(path, f"{markdown}\n\n{paired_markdown}\n\n{seconds:.0f} s in all\n")
    console.print(f"{seconds:.0f} s in all; table: {path}; runs: {folders[0].parent}")
    return reports
