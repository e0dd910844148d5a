"""Weights & Biases: one W&B run for each run folder, whatever commands work on it and however often it is resumed.

What a run folder is in W&B:

- its id is kept in ``wandb-run.json``, so that a resumed run and ``steca evaluate run=PATH`` continue in it. Offline,
  each command leaves a folder of its own with that id, and ``wandb sync`` joins them. W&B's own step never goes back:
  steps are reserved in blocks, and the next command begins after the last block.
- a W&B server that is not reached at the start leaves an offline run, and the line that uploads it later.
- under ``wandb agent`` the agent's id, project and entity hold.
- each phase has its own axis (``warm_up/step``); W&B's step only counts rows.
- settings are stored without secrets, and the command line, which may hold one, is not stored.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import sqlite3
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steca_gym.errors import ConfigError
from steca_gym.files import write_atomically
from steca_gym.tracking.base import Artifact, Chart, named
from steca_gym.tracking.making import require
from steca_gym.tracking.secrets import without_secrets

KEPT = "wandb-run.json"
"""file in the run's folder: id, project and entity of the W&B run, and the first free step"""

_STEPS_RESERVED = 1000
"""rows between two writes of the first free step"""
_LOGIN_TIMEOUT_S = 10.0
"""time for a person in a terminal to answer W&B's question for an account; `wandb login` answers it for good"""
_MODES = ("offline", "online", "disabled")
_MAX_CHARS = 128
"""of a group, a job type, or a run's name"""
_MAX_TAG_CHARS = 64


class WandbTracker:
    """A W&B run.

    Args:
        folder: the run's folder; offline data go below it, under ``wandb/``.
        settings: the composed configuration.
        sweep: name of the sweep that the run belongs to.
        project: of W&B.
        mode: ``offline`` needs no account: `wandb sync` uploads later. ``online``, or ``disabled``.
        entity: user or team; None: W&B's default.
        group: None: the sweep's name.
        job_type: None: the method's name.
        run_name: None: the folder's name.
        tags: of the run, each at most 64 characters.
        notes: of the run.
        artifacts_max_mb: the largest buffer or model, in megabytes, that is logged as an artifact; 0: none, None: no
            limit.
        timeout_s: seconds that starting, finishing and every other call may take, > 0.
    """

    @staticmethod
    def check_settings(
        *,
        project: str,
        mode: str = "offline",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        run_name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        artifacts_max_mb: float | None = 32,
        timeout_s: float = 60,
    ) -> None:
        """Raise ConfigError for what W&B would refuse, and where its package is missing."""
        require("wandb", "wandb")
        if mode not in _MODES:
            raise ConfigError(f"logger.mode must be offline, online or disabled, got {mode!r}")
        if not project or re.search(r"[/\\#?%:]", project) or len(project) > _MAX_CHARS:
            raise ConfigError(
                f"logger.project must be a name of at most {_MAX_CHARS} characters, without / \\ # ? % or :, "
                f"got {project!r}"
            )
        for name, value in (("group", group), ("job_type", job_type), ("run_name", run_name)):
            if value is not None and not 0 < len(value) <= _MAX_CHARS:
                raise ConfigError(f"logger.{name} must have 1 to {_MAX_CHARS} characters, got {len(value)}")
        if isinstance(tags, str) or not all(isinstance(t, str) and 0 < len(t) <= _MAX_TAG_CHARS for t in tags):
            raise ConfigError(
                f"logger.tags must be a list of texts of 1 to {_MAX_TAG_CHARS} characters, got {tags!r}; "
                "e.g. logger.tags=[household,first]"
            )
        if artifacts_max_mb is not None and artifacts_max_mb < 0:
            raise ConfigError(f"logger.artifacts_max_mb must be >= 0, or null for no limit, got {artifacts_max_mb}")
        if not timeout_s > 0:
            raise ConfigError(f"logger.timeout_s must be > 0, got {timeout_s}")

    def __init__(
        self,
        *,
        folder: Path,
        settings: Mapping[str, Any],
        project: str,
        sweep: str = "",
        mode: str = "offline",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        run_name: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        artifacts_max_mb: float | None = 32,
        timeout_s: float = 60,
    ) -> None:
        """Start the W&B run of the folder, or continue it."""
        import wandb

        self._wandb = wandb
        self._folder = folder
        self._mode = mode
        self._limit_bytes = None if artifacts_max_mb is None else artifacts_max_mb * 1e6
        self._left_out: list[str] = []
        self._exit_code = 0
        self._defined: set[str] = set()
        kept = _read_kept(folder)
        by_agent = bool(os.environ.get("WANDB_SWEEP_ID"))
        run_id = os.environ.get("WANDB_RUN_ID") or kept.get("id") or secrets.token_hex(4)
        same = kept.get("id") == run_id
        if same and not by_agent:  # a run does not move: W&B would begin another one under the same id
            project, entity = kept.get("project", project), kept.get("entity", entity)
        method = settings.get("method", {})
        wandb.setup(wandb.Settings(silent=True))

        def begin() -> Any:
            return wandb.init(
                project=None if by_agent else project,
                entity=None if by_agent else entity,
                id=None if by_agent else run_id,
                resume="allow",
                reinit="create_new",
                mode=self._mode,  # type: ignore[arg-type]
                dir=str(folder),
                name=run_name or folder.resolve().name[:_MAX_CHARS],
                group=group or sweep or None,
                job_type=job_type or str(method.get("name") or method.get("_target_") or "run")[:_MAX_CHARS],
                tags=list(tags) or None,
                notes=notes,
                config=without_secrets(settings),
                allow_val_change=True,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    login_timeout=min(timeout_s, _LOGIN_TIMEOUT_S),
                    init_timeout=timeout_s,
                    finish_timeout=timeout_s,
                    x_disable_meta=True,  # it holds the command line
                ),
            )

        try:
            self._run = begin()
        except Exception as error:
            if mode != "online":
                raise
            self._mode = "offline"
            why = " ".join(str(error).split())
            warnings.warn(f"W&B is not reached, so the run is logged offline: {why}", stacklevel=2)
            self.abandon()  # W&B's service still holds the run that it could not begin
            self._run = begin()
        self._kept = {"id": run_id, "project": project, "entity": entity}
        self._next = max(int(kept.get("next_step", 0)) if same else 0, int(self._run.step or 0))
        self._reserved = self._next
        self._keep(self._next)

    # -- rows -----------------------------------------------------------------------------------------------

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """See Tracker; with a step, the phase's metrics are drawn over ``phase/step``."""
        row: dict[str, Any] = named(metrics, phase)
        if step is not None:
            row[self._axis(phase)] = step
        self._write(row)

    def _axis(self, phase: str) -> str:
        axis = f"{phase}/step" if phase else "step"
        if axis not in self._defined:
            self._defined.add(axis)
            self._run.define_metric(axis, hidden=True)
            if phase:
                self._run.define_metric(f"{phase}/*", step_metric=axis)
        return axis

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._next >= self._reserved:
            self._keep(self._next + _STEPS_RESERVED)
        self._run.log(dict(row), step=self._next, commit=True)
        self._next += 1

    def _keep(self, next_step: int) -> None:
        self._reserved = next_step
        write_atomically(self._folder / KEPT, json.dumps({**self._kept, "next_step": next_step}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Tracker."""
        table = self._wandb.Table(columns=list(columns), data=[list(r) for r in rows], allow_mixed_types=True)
        self._write({name: table})

    def chart(self, name: str, chart: Chart) -> None:
        """See Tracker: a custom chart of W&B."""
        drawn = self._wandb.plot.line_series(
            xs=[[x for x, _ in points] for points in chart.lines.values()],
            ys=[[y for _, y in points] for points in chart.lines.values()],
            keys=list(chart.lines),
            title=chart.title,
            xname=chart.x_label,
        )
        self._write({name: drawn})

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """See Tracker: what `wandb sweep` optimizes, e.g. ``success``."""
        self._run.summary.update({k: v for k, v in metrics.items() if v is not None})

    # -- artifacts ------------------------------------------------------------------------------------------

    def artifact(self, artifact: Artifact) -> None:
        """See Tracker: as an output of the W&B run, or as an input where a sibling has logged it."""
        files = [artifact.path]
        if artifact.kind == "model":
            files = sorted(f for f in artifact.path.iterdir() if f.is_file() and not f.name.startswith("."))
        size = sum(f.stat().st_size for f in files)
        if self._limit_bytes is not None and size > self._limit_bytes:
            if self._limit_bytes:
                self._left_out.append(f"{artifact.name} ({size / 1e6:,.0f} MB)")
            return
        if artifact.shared_from and self._mode == "online":
            # Not there yet where the sibling has not uploaded it: then it is logged here, under the same name.
            with contextlib.suppress(Exception):
                self._run.use_artifact(f"{artifact.name}:latest")
                return
        made = self._wandb.Artifact(
            artifact.name,
            type=artifact.kind,
            metadata={
                **artifact.metadata,
                "made_from": list(artifact.made_from),
                **({"shared_from": artifact.shared_from} if artifact.shared_from else {}),
            },
        )
        if artifact.kind == "buffer":
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / artifact.path.name
                _copy_database(artifact.path, copy)
                made.add_file(str(copy))
        else:  # never changed behind its stage: uploaded from where it is, without a second copy
            for file in files:
                made.add_file(str(file.resolve()), name=file.name, policy="immutable", skip_cache=True)
        self._run.log_artifact(made)

    # -- ends -----------------------------------------------------------------------------------------------

    def failed(self, reason: str) -> None:
        """The run ends with an error: so does the W&B run."""
        self._exit_code = 1
        self._run.summary["error"] = without_secrets({"reason": reason})["reason"]

    def finish(self) -> None:
        """See Tracker."""
        self._keep(self._next)
        self._run.finish(exit_code=self._exit_code)

    def opening_lines(self) -> list[str]:
        """Where to watch the run."""
        return [f"W&B: {self._run.url}"] if self._mode == "online" and self._run.url else []

    def closing_lines(self) -> list[str]:
        """What was left out, and the command that uploads what an offline run has written."""
        lines = []
        if self._left_out:
            lines.append(
                f"not logged to W&B, over logger.wandb.artifacts_max_mb={(self._limit_bytes or 0) / 1e6:g}: "
                + ", ".join(self._left_out)
            )
        if self._mode == "offline":
            # All parts of the run: what an earlier command has left and was not uploaded belongs to it.
            lines.append(f"wandb sync {shlex.quote(str(self._folder / 'wandb'))}/offline-run-*-{self._kept['id']}*")
        return [*lines, *self.opening_lines()]

    @staticmethod
    def abandon() -> None:
        """End W&B's service process, which hangs: its hook at the end of the process would wait for it for ever."""
        import wandb

        setup: Any = wandb.setup()
        connection = setup._connection
        setup._connection = None
        for undo in (
            lambda: connection._cleanup(),
            lambda: connection._proc._process.kill(),
            lambda: os.environ.pop("WANDB_SERVICE", None),
            lambda: [setup.remove_active_run(run) for run in list(setup._active_runs)],
        ):
            with contextlib.suppress(Exception):  # W&B's internals: where they have changed, nothing else breaks
                undo()


def _read_kept(folder: Path) -> dict[str, Any]:
    try:
        kept = json.loads((folder / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and isinstance(kept.get("id"), str) else {}


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a SQLite file that is being written."""
    with (
        contextlib.closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as reader,
        contextlib.closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)
