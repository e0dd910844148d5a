"""What each phase of a run does: demonstrations, warm-up, calibration, reinforced training, evaluation.

Knows how the rooms are put together and what is kept in the run's folder. Knows no order of phases (recipes do) and
no concrete environment or agent. Every phase is idempotent: what the folder holds already is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.agent import Agent
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.errors import CheckpointError, ConfigError, DataError
from steca_gym.run import Run, settings_digest, write_atomically
from steca_gym.trajectory import Trajectory, WeightedTrajectory

if TYPE_CHECKING:
    from steca_gym.calibration import ExpertResult
    from steca_gym.evaluation import EvaluationReport
    from steca_gym.training import TrainSettings


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
            episodes = run.collector(_expert(run)).run(requests)
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
    env = {k: v for k, v in run.settings["env"].items() if not k.startswith(("eval_", "num_eval_"))}
    parts = {k: agent[k] for k in ("model", "build", "warm_up")}
    digest = settings_digest({"env": env, "agent": parts, "seed": run.seed, "expert": run.settings["expert"]})
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


def _train_settings(run: Run, raw: dict[str, Any]) -> TrainSettings:
    from steca_gym.training import TrainSettings

    try:
        return TrainSettings(seed=run.seed, **raw)
    except TypeError as error:
        raise ConfigError(f"training settings: {error}; see steca_gym.training.TrainSettings") from error


def own_successes(run: Run, model: Path | None, task_ids: Sequence[str]) -> list[Trajectory]:
    """The agent's own distinct wins among ``method.num_samples`` sampled episodes per training task (for RFT)."""
    method = run.settings["method"]
    if run.done("calibration") is None:
        with run.phase("calibration", f"own episodes: {method['num_samples']} per training task") as record:
            done = run.buffer.done("own_successes")
            task_ids = list(task_ids)[: run.settings["exploration"]["num_experts"]]
            requests = [
                _request(run, t, index=i, temperature=float(method["temperature"]))
                for t in task_ids
                for i in range(int(method["num_samples"]))
                if t not in done
            ]
            with run.progress("own episodes", len(requests)) as on_progress:
                episodes = run.collector(run.agent(model), on_progress=on_progress).run(requests)
            # Equal action sequences teach the same: one of them is enough.
            wins = {(e.trajectory.task_id, e.trajectory.actions): e.trajectory for e in episodes if e.trajectory.won}
            run.buffer.add_trajectories(list(wins.values()), kind="own")
            run.buffer.mark_done("own_successes", sorted({r.task_id for r in requests}))
            record["num_episodes"] = len(episodes)
            record["num_won"] = len(run.buffer.trajectories(kind="own"))
    run.reached("calibration")
    return run.buffer.trajectories(kind="own")


def calibration(run: Run, model: Path | None, experts: Sequence[Trajectory], round_index: int) -> list[ExpertResult]:
    """Explore, detect, correct and execute for every expert trajectory; each result is stored as soon as it stands."""
    from steca_gym.calibration import CalibrationSettings, Counts, calibrate
    from steca_gym.step_rewards import StepRewardSettings

    name = _round_name("calibration", round_index)
    if run.done(name) is None:
        preset = run.settings["preset"]
        common = {"max_new_tokens": int(run.settings["agent"]["max_new_tokens"]), "round": round_index}
        settings = CalibrationSettings.preset(preset["name"], **{**preset["calibration"], **common})
        rewards = StepRewardSettings.preset(preset["name"], **preset["step_rewards"])
        chosen = explored_from(run, experts, round_index)[: run.settings["exploration"]["num_experts"]]
        agent = run.agent(model)
        with run.phase(name, f"calibration: {len(chosen)} trajectories, {rewards.estimator} step rewards") as record:
            collector = run.collector(agent)
            with run.progress("calibration", len(chosen)) as on_progress:

                def show(done: int, total: int, counts: Counts) -> None:
                    on_progress(done, f"{counts.num_accepted} accepted, {counts.num_samples} continuations")

                calibrate(
                    collector,
                    chosen,
                    settings=settings,
                    reward_settings=rewards,
                    reflector=run.reflector(agent),
                    seed=run.seed,
                    make_env=run.make_env,
                    similarity=run.similarity(),
                    judge=run.judge() if rewards.estimator == "judge" else None,
                    done=run.buffer.done(name),
                    on_result=lambda result: run.buffer.add_result(result, phase=name),
                    on_progress=show,
                )
            results = run.buffer.results(name)
            counts = sum((r.counts for r in results), Counts())
            record.update(dataclasses.asdict(counts))
            for metric, value in dataclasses.asdict(counts).items():
                run.tracker.log({metric: float(value)}, phase=name)
            run.tracker.table(
                f"{name}_table",
                ["task", "step", "deviated action", "expert action", "reflection", "status", "reason"],
                [
                    [c.task_id, c.step, c.deviated.action, c.expert_action, c.reflection.text, c.status, c.reason]
                    for r in results
                    for c in r.calibrations
                ],
            )
    run.reached("calibration")
    return run.buffer.results(name)


def explored_from(run: Run, experts: Sequence[Trajectory], round_index: int) -> list[Trajectory]:
    """The trajectories along which a round explores.

    The first round explores along the expert's. With ``method.explore_from=corrected`` a later one goes on from what
    the round before corrected: its histories hold one wrong action more each time, as the agent's own do.
    """
    if round_index == 0 or run.settings["method"].get("explore_from", "experts") == "experts":
        return list(experts)
    refused = run.buffer.refused_ids()
    earlier = run.buffer.results(_round_name("calibration", round_index - 1))
    return [
        c.trajectory
        for result in earlier
        for c in result.calibrations
        if c.status == "accepted" and c.calibration_id not in refused
    ]


def _round_name(phase: str, round_index: int) -> str:
    return phase if round_index == 0 else f"{phase}.{round_index}"


def reinforced_samples(run: Run, experts: Sequence[Trajectory], round_index: int) -> list[WeightedTrajectory]:
    """D_c, D_e and D_s of this round and those before, weighted; refused calibrations stay out."""
    from steca_gym.calibration import WeightSettings, weighted_samples

    preset, method = run.settings["preset"], run.settings["method"]
    chosen = {k: v for k, v in method["weights"].items() if v is not None}
    settings = WeightSettings.preset(preset["name"], **{**preset["weights"], **chosen})
    refused = run.buffer.refused_ids()
    samples: list[WeightedTrajectory] = []
    for earlier in range(round_index + 1):
        samples += weighted_samples(
            run.buffer.results(_round_name("calibration", earlier)),
            explored_from(run, experts, earlier),
            settings,
            distance=run.distance(),
            approved=lambda c: c.calibration_id not in refused,
        )
    rehearsed = list(experts)[: method["num_rehearsed"]]
    samples += [WeightedTrajectory(trajectory=e) for e in rehearsed]
    if not samples:
        raise DataError(
            "no training samples: no calibration was accepted and nothing else is switched on; the agent may already "
            "do what the expert does, or the horizon is too short (see the calibrations in buffer.sqlite)"
        )
    return samples


def reinforce(run: Run, model: Path | None, samples: Sequence[WeightedTrajectory], round_index: int = 0) -> Path | None:
    """Reward-weighted training on the samples; returns the new model's folder."""
    from steca_gym.training import train

    if model is None:
        raise ConfigError("agent without a model cannot be trained; choose agent=tiny or agent=transformers")
    name = _round_name("reinforce", round_index)
    folder = run.folder / ("model" if round_index == 0 else f"model-{round_index}")
    if run.done(name) is None:
        kinds = Counter(s.kind for s in samples)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        with run.phase(name, f"training on {told}") as record:
            settings = _train_settings(run, run.settings["agent"]["reinforce"])
            with run.progress("training", settings.max_steps) as on_progress:

                def on_log(metrics: dict[str, float]) -> None:
                    run.tracker.log(metrics, phase=name)
                    on_progress(int(metrics.get("step", 0)), f"loss {metrics.get('loss', float('nan')):.3f}")

                report = train(model, samples, prompt=run.prompt, settings=settings, output_dir=folder, on_log=on_log)
            record.update(report.as_dict(), **{f"num_{k}": v for k, v in kinds.items()})
            _sign(folder, samples[0].trajectory.fingerprint)
    run.reached("reinforce")
    return folder


def _sign(folder: Path, fingerprint: str) -> None:
    """Leave beside the weights which environment they were trained in."""
    write_atomically(folder / "steca.json", json.dumps({"fingerprint": fingerprint}))


def check_signature(folder: Path, fingerprint: str) -> None:
    """Raise CheckpointError when a model was trained in another world (other data of one world is fine)."""
    path = folder / "steca.json"
    if not path.exists():
        return
    trained = str(json.loads(path.read_text())["fingerprint"])
    if trained.partition("+")[0].partition("/")[0] != fingerprint.partition("+")[0].partition("/")[0]:
        raise CheckpointError(
            f"model {str(folder)!r} was trained in {trained!r}, got environment {fingerprint!r}; "
            "use the environment it was trained in, or remove its steca.json to insist"
        )


def evaluation(run: Run, model: Path | None, *, again: bool = False) -> EvaluationReport:
    """Greedy evaluation on games that fed nothing; the report is kept as evaluation.json and shown."""
    from steca_gym.evaluation import EvaluationReport, EvaluationSettings, comparison_table, evaluate

    path = run.folder / "evaluation.json"
    if path.exists() and not again:
        return EvaluationReport.from_dict(json.loads(path.read_text()))
    env = run.settings["env"]
    split = env["eval_split"]
    task_ids = run.task_ids(split, int(env["num_eval_tasks"]))
    with run.phase("evaluation", f"evaluation: {len(task_ids)} games of {split}") as record:
        agent = run.agent(model)
        if model is not None:
            check_signature(model, run.make_env(split).fingerprint)
        experts = [
            e.trajectory for e in run.collector(_expert(run), split=split).run([_request(run, t) for t in task_ids])
        ]
        report = evaluate(
            run.collector(agent, split=split),
            task_ids,
            seed=run.seed,
            expert_trajectories=[e for e in experts if e.won],
            forbidden_task_ids={e.task_id for e in run.buffer.trajectories(kind="expert")},
            settings=EvaluationSettings(sampling=run.sampling(0.0), stress=bool(run.settings["evaluation"]["stress"])),
            make_env=lambda: run.make_env(split),
            encoder=run.encoder(),
        )
        record.update({k: v for k, v in report.as_dict().items() if isinstance(v, int | float)})
    report = dataclasses.replace(report, cost=run.total_cost())
    write_atomically(path, json.dumps(report.as_dict(), indent=1))
    table, _ = comparison_table({run.settings["method"]["name"]: report})
    run.console.print(table)
    run.reached("evaluation")
    return report
