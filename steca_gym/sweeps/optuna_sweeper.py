"""``hydra/sweeper=optuna``: Optuna chooses the values; each trial is a run.

The published Hydra sweeper holds Optuna at 2.10; this one speaks to the current one through ask and tell.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.sweeper import Sweeper as HydraSweeper

from steca_gym.errors import ConfigError
from steca_gym.sweeps.objective import check_objective
from steca_gym.sweeps.outcomes import JobOutcome, WatchedLauncher

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


class OptunaSweeper(HydraSweeper):
    """Asks Optuna for values of the swept keys, plays the runs, tells it what they reached.

    ``key=interval(a,b)`` is a number between, ``tag(log,interval(a,b))`` on a log scale, ``key=int(interval(a,b))`` a
    whole number, ``key=range(a,b,step)`` one of the steps, ``key=choice(...)`` or a list one of the values.

    Args:
        direction: ``maximize`` or ``minimize``.
        objective: the figure that each job returns; see ``steca_gym.sweeps.objective``.
        n_trials: trials of the study in all, those of earlier commands included.
        n_jobs: trials that are launched together, >= 1.
        storage: an Optuna storage URL, e.g. ``sqlite:///runs/optuna.db``, from which a killed sweep continues; None: in
            memory.
        study_name: of the study in its storage.
        seed: of the sampler (TPE).
        params: swept keys beside those of the command.
    """

    def __init__(
        self,
        direction: str = "maximize",
        objective: str = "success",
        n_trials: int = 20,
        n_jobs: int = 1,
        storage: str | None = None,
        study_name: str | None = None,
        seed: int | None = 0,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """See the class; raises ConfigError."""
        check_objective(objective)
        if direction not in ("maximize", "minimize"):
            raise ConfigError(f"direction must be maximize or minimize, got {direction!r}")
        for name, value in (("n_trials", n_trials), ("n_jobs", n_jobs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value!r}")
        self.direction: Any = direction
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.storage, self.study_name, self.seed = storage, study_name, seed
        self.params = dict(params or {})

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """As Hydra's sweepers, with a watched launcher."""
        from hydra.core.plugins import Plugins

        self._context, self._config = hydra_context, config
        self._launcher = WatchedLauncher(
            Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )
        )

    def sweep(self, arguments: list[str]) -> None:
        """Play the trials that the study still lacks."""
        import optuna
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import OmegaConf

        parser = OverridesParser.create(config_loader=self._context.config_loader)
        overrides = parser.parse_overrides([*(f"{k}={v}" for k, v in self.params.items()), *arguments])
        space = {o.get_key_element(): _explained(o) for o in overrides if o.is_sweep_override()}
        fixed = [
            f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in overrides if not o.is_sweep_override()
        ]
        if not space:
            raise ConfigError("nothing to optimize; sweep a key, e.g. agent.train.learning_rate=interval(1e-4,1e-3)")
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                storage=self.storage,
                study_name=self.study_name,
                direction=self.direction,
                sampler=optuna.samplers.TPESampler(seed=self.seed),
                load_if_exists=True,
            )
        except Exception as error:  # whatever the storage's driver raises
            told = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"optuna cannot open the study in {self.storage!r}: {type(error).__name__}: {told}"
            ) from error
        states = optuna.trial.TrialState
        running = study.get_trials(states=(states.RUNNING,))
        theirs = [t for t in running if _is_alive(t.user_attrs.get(_OWNER, ""))]
        for lost in (t for t in running if t not in theirs):  # of a sweep that was killed: their runs are resumed
            study.tell(lost.number, state=states.FAIL)
            study.enqueue_trial(lost.params)
        if theirs:
            print(f"optuna: trials that another command plays in this study right now: {len(theirs)}")
        done = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
        number = 0
        while number < self.n_trials - done:
            batch = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - done - number))]
            for trial in batch:
                trial.set_user_attr(_OWNER, _process(os.getpid()))
            jobs = [[*fixed, *(f"{k}={v}" for k, v in trial.params.items())] for trial in batch]
            for trial, result in zip(batch, self._launcher.launch(jobs, number), strict=True):
                outcome: JobOutcome = result.return_value
                failed = outcome.code != 0 or not math.isfinite(outcome)
                study.tell(trial, None if failed else float(outcome), states.FAIL if failed else None)
            number += len(batch)
        self._say_best(study)

    def _say_best(self, study: Any) -> None:
        try:
            best = study.best_trial
        except ValueError:
            print("optuna: no trial succeeded")
            return
        chosen = " ".join(f"{k}={v}" for k, v in best.params.items())
        states = [t.state.name for t in study.trials]
        num_failed = states.count("FAIL")
        failed = f" ({num_failed} failed and have no value)" if num_failed else ""
        done = states.count("COMPLETE")
        print(f"optuna: best of {done} finished trials{failed} is #{best.number}, {best.value:.4g}: {chosen}")


_OWNER = "steca_process"
"""attribute of a trial: the process that plays it"""


def _process(pid: int) -> str:
    """Host, id and start of a process; a number that is given again is another process."""
    try:
        begun = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        begun = ""
    return f"{socket.gethostname()} {pid} {begun}"


def _is_alive(process: str) -> bool:
    """Whether a process that ``_process`` described still runs; True for one on another host, which nobody can ask."""
    host, _, rest = process.partition(" ")
    pid = rest.partition(" ")[0]
    if not pid.isdigit():
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _process(int(pid)) == process


def _explained(override: Override) -> Any:
    try:
        return distribution(override)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"optuna cannot sweep {override.input_line}: {error}") from error


def distribution(override: Override) -> Any:
    """The Optuna distribution of a swept override; raises ConfigError for a sweep that it has none for."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, ChoiceSweep) or isinstance(value, RangeSweep) and value.shuffle:
        return CategoricalDistribution([_plain(v) for v in override.sweep_string_iterator()])
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        # Hydra's ranges end before their stop, as Python's; Optuna's hold their last value. Optuna counts in decimals.
        low, stop, step = (Decimal(str(v)) for v in (value.start, value.stop, value.step))
        high = low + (math.ceil((stop - low) / step) - 1) * step
        if all(isinstance(v, int) for v in (value.start, value.stop, value.step)):
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(float(low), float(high), step=float(step))
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    raise ConfigError(f"optuna cannot sweep {override.input_line}; expected interval(a,b), range(a,b) or choice(...)")


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
