"""What each phase of a run does: demonstrations, warm-up, calibration, reinforced training, evaluation.

Knows how the rooms are put together and what is kept in the run's folder. Knows no order of phases (recipes do) and
no concrete environment or agent. Every phase is idempotent: what the folder holds already is not done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.agent import Agent
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.errors import ConfigError, DataError
from steca_gym.run import Run, settings_digest, write_atomically
from steca_gym.trajectory import Trajectory, WeightedTrajectory

if TYPE_CHECKING:
    from steca_gym.evaluation import EvaluationReport


def demonstrations(run: Run) -> list[Trajectory]:
    """Let the expert play the training tasks; what it does not win is dropped and counted.

    Raises DataError when the world has no expert or the expert wins nothing.
    """
    env = run.settings["env"]
    task_ids = run.task_ids(env["train_split"], int(env["num_train_tasks"]))
    if run.done("demonstrations") is None:
        with run.phase("demonstrations", f"demonstrations: the expert plays {len(task_ids)} tasks") as record:
            done = run.buffer.done("demonstrations")
            requests = [_request(run, t) for t in task_ids if t not in done]
            episodes = run.collector(_expert(run), progress="expert").run(requests)
            won = [e.trajectory for e in episodes if e.trajectory.won]
            run.buffer.add_trajectories(won, kind="expert")
            run.buffer.mark_done("demonstrations", [r.task_id for r in requests])
            record["num_won"] = len(run.buffer.trajectories(kind="expert"))
            record["num_lost"] = len(task_ids) - record["num_won"]
    experts = run.buffer.trajectories(kind="expert")
    if not experts:
        raise DataError(
            f"no demonstrations: the expert of {env['id']!r} won none of {len(task_ids)} tasks; "
            "check the horizon, and that the world has an expert"
        )
    run.reached("demonstrations")
    return experts


def _expert(run: Run) -> Agent:
    from hydra.utils import instantiate

    agent: Agent = instantiate(run.settings["expert"])
    return agent


def _request(run: Run, task_id: str, *, index: int = 0, temperature: float = 0.0, **kwargs: Any) -> EpisodeRequest:
    """An episode whose seed follows from the run's seed, the task and an index."""
    import zlib

    seed = zlib.crc32(f"{run.seed}/{task_id}/{index}".encode())
    return EpisodeRequest(task_id=task_id, seed=seed, sampling=run.sampling(temperature), **kwargs)


def warm_up(run: Run, experts: Sequence[Trajectory]) -> Path | None:
    """Fine-tune on the expert trajectories; returns the model's folder (None for agents without a model).

    Methods and seeds of a sweep that share these settings share the warm-up: it lies beside the runs, under the
    digest of what it depends on.
    """
    agent = run.settings["agent"]
    if agent["build"] is None and agent["model"] is None:
        return None
    digest = settings_digest(
        {k: run.settings[k] for k in ("env", "agent", "seed", "expert")}, without=()
    )
    folder = run.folder.parent / "warm-up" / digest
    if not (folder / "warm-up.json").exists():
        from steca_gym.training import train

        scratch = folder.with_name(f"{digest}.part-{run.folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        with run.phase("warm_up", f"warm-up: {len(experts)} expert trajectories") as record:
            start: Path
            if agent["build"] is not None:
                from hydra.utils import instantiate

                texts = [m.content for e in experts for m in e.messages(run.prompt)]
                start = instantiate(agent["build"])(corpus=texts, output_dir=scratch / "initial", seed=run.seed)
            else:
                start = Path(agent["model"])
            report = train(
                start,
                [WeightedTrajectory(trajectory=e) for e in experts],
                prompt=run.prompt,
                settings=_train_settings(run, agent["warm_up"]),
                output_dir=scratch,
                on_log=lambda m: run.tracker.log(m, phase="warm_up"),
            )
            record.update(report.as_dict())
        shutil.rmtree(scratch / "initial", ignore_errors=True)
        fingerprint = experts[0].fingerprint
        write_atomically(scratch / "warm-up.json", json.dumps({"fingerprint": fingerprint, **record}, indent=1))
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(folder)
        except OSError:  # a sibling of the sweep was faster with the same warm-up
            shutil.rmtree(scratch, ignore_errors=True)
    run.reached("warm_up")
    return folder


def _train_settings(run: Run, raw: dict[str, Any]) -> Any:
    from steca_gym.training import TrainSettings

    try:
        return TrainSettings(seed=run.seed, **raw)
    except TypeError as error:
        raise ConfigError(f"training settings: {error}; see steca_gym.training.TrainSettings") from error
