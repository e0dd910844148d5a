"""The stages of STeCa: calibration (phases 2 and 3), and training on what it found (phase 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from steca_gym.buffer import Standing
from steca_gym.calibration import (
    CalibrationSettings,
    Counts,
    ExpertResult,
    StepRewardSettings,
    WeightSettings,
    calibrate,
    weighted_samples,
)
from steca_gym.calibration.agreement import PaperAgreement, paper_agreement
from steca_gym.calibration.exploration import TURN_BROKE
from steca_gym.distances import Encoder, dndtw
from steca_gym.errors import ConfigError, DataError, ReviewError
from steca_gym.methods.base import Stage, round_name
from steca_gym.methods.context import Context, Record, RunConfig, Stored
from steca_gym.methods.stages import (
    TrainOnTrajectories,
    demonstrations,
    engine_settings,
    report_broken,
    subsample,
    train_settings,
)
from steca_gym.methods.steca.tracked import (
    CALIBRATION_COLUMNS,
    TIMELINE_COLUMNS,
    calibration_rows,
    continuation_success,
    timeline_rows,
    timelines,
)
from steca_gym.review.config import ReviewConfig
from steca_gym.review.policy import effective_results, standing_of, waiting
from steca_gym.training import TrainSettings
from steca_gym.trajectory import Trajectory, WeightedTrajectory


class Calibrate(Stage):
    """Explore, detect, correct and execute for every expert trajectory; each result is stored as soon as it stands."""

    def __init__(
        self,
        *,
        round_index: int,
        settings: CalibrationSettings,
        step_rewards: StepRewardSettings,
        num_experts: int | None,
        explore_from: Literal["corrected", "experts"],
        departures: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        """One stage a round: ``calibration``, ``calibration.1``, ..."""
        self.name = round_name("calibration", round_index)
        self.round_index = round_index
        self.settings = settings
        self.step_rewards = step_rewards
        self.num_experts = num_experts
        self.explore_from = explore_from
        self.departures = departures

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The method's settings, the agent that explores, and who reflects."""
        needs: dict[str, Any] = {
            "calibration": self.settings,
            "step_rewards": self.step_rewards,
            "num_experts": self.num_experts,
            **engine_settings(config),
            "reflector": config.reflector,
            "repairs": config.expert,
        }
        if self.round_index:
            needs["explore_from"] = self.explore_from
        if self.settings.same_action == "encoder":
            needs["encoder"] = config.encoder
        if self.step_rewards.estimator == "judge":
            needs["judge"] = config.judge
        return needs

    def check(self, config: RunConfig) -> None:
        """Refuse an estimator without its part."""
        if self.step_rewards.estimator == "judge" and config.judge is None:
            raise ConfigError("estimator=judge needs a judge; add +judge._target_=... (see docs/step-rewards.md)")

    def run(self, context: Context, record: Record) -> None:
        """Calibrate what is not stored yet."""
        config = context.config
        settings = dataclasses.replace(
            self.settings, max_new_tokens=config.agent.max_new_tokens, round=self.round_index
        )
        chosen = subsample(config.seed, self.explored_along(context), self.num_experts)
        agent = context.agent(context.model)
        broken: list[str] = []
        repairs = context.repair_expert()
        context.say(
            f"  {len(chosen)} trajectories, {self.step_rewards.estimator} step rewards; where no demonstration leads, "
            + ("the world's own expert continues" if repairs is None else f"the expert {repairs.name} continues")
        )
        if self.departures is not None:
            context.say(*(f"  {line}" for line in self.departures(context.encoder().name)))

        def keep(result: ExpertResult) -> None:
            # A turn that broke (a server that was away) says nothing of the trajectory: the next attempt asks again.
            if result.error.startswith(TURN_BROKE):
                broken.append(result.error)
            else:
                context.buffer.add_result(result, phase=self.name)

        with context.collector(agent) as collector, context.progress(self.name, len(chosen)) as on_progress:

            def show(done: int, total: int, counts: Counts) -> None:
                found = f"{counts.num_deviated + counts.num_fatal} deviations, {counts.num_accepted} accepted"
                metrics = {k: float(v) for k, v in dataclasses.asdict(counts).items()}
                on_progress(done, f"{found}, {counts.num_samples} continuations", total, metrics=metrics)

            calibrated = calibrate(
                collector,
                chosen,
                settings=settings,
                reward_settings=self.step_rewards,
                reflector=context.reflector(agent),
                seed=config.seed,
                make_env=context.make_env,
                expert=repairs,
                similarity=cosine(context.encoder()) if settings.same_action == "encoder" else None,
                judge=context.judge() if self.step_rewards.estimator == "judge" else None,
                done=context.buffer.done(self.name),
                earlier=context.buffer.results(self.name),
                on_result=keep,
                on_progress=show,
            )
        results = self.results(context)
        report_broken(context, broken, len(broken) + len(results), "trajectories")
        record["num_broken"] = len(broken)
        counts = sum((r.counts for r in results), Counts())
        agreement = paper_agreement(results)
        record.update(dataclasses.asdict(counts))
        record["paper_agreement"] = agreement.as_dict()
        record.update(continuation_success(results))
        record["estimator"] = {"name": self.step_rewards.estimator, **calibrated.estimator}
        context.tracker.log(
            {f"paper_{k}": float(v) for k, v in agreement.as_dict().items() if v is not None}, phase=self.name
        )
        context.say(*_summary(counts, agreement, self.settings))
        if calibrated.estimator:
            figures = ", ".join(f"{key} {value:.3g}" for key, value in calibrated.estimator.items())
            context.say(f"  {self.step_rewards.estimator}: {figures}")
        context.tracker.table(
            f"{self.name}_table", CALIBRATION_COLUMNS, calibration_rows(results, folder=context.folder, stage=self.name)
        )
        context.tracker.table(f"{self.name}_timelines", TIMELINE_COLUMNS, timeline_rows(results))
        for name, chart in timelines(results).items():
            context.tracker.chart(f"{self.name}_timeline/{name}", chart)

    def results(self, context: Context) -> list[ExpertResult]:
        """What is stored, ordered by expert trajectory."""
        return context.buffer.results(self.name)

    def explored_along(self, context: Context) -> list[Trajectory]:
        """The trajectories along which this round explores: the expert's, or what the round before corrected."""
        if self.round_index == 0 or self.explore_from == "experts":
            return demonstrations(context)
        earlier = context.buffer.results(round_name("calibration", self.round_index - 1))
        return [
            c.trajectory
            for result in effective_results(earlier, context.buffer.standings())
            for c in result.calibrations
            if c.status == "accepted" and c.kind == "corrected"
        ]

    def adopt(self, context: Context, source: Stored) -> bool:
        """Copy the results with their evidence."""
        with source.buffer() as other:
            results = other.results(self.name)
        for result in results:
            context.buffer.add_result(result, phase=self.name)
        return bool(results)


class TrainOnCalibrations(TrainOnTrajectories):
    """Reward-weighted training on D_c, D_e and D_s of this round and those before, and on replayed demonstrations."""

    def __init__(
        self,
        calibrate: Calibrate,
        *,
        weights: WeightSettings,
        num_replayed: int | None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Train on what ``calibrate`` and its earlier rounds found, with ``training`` over ``agent.train``."""
        super().__init__(calibrate.round_index)
        self.calibrate = calibrate
        self.weights = weights
        self.num_replayed = num_replayed
        self.training = dict(training or {})

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """Weights and mix; the encoder where distances weigh or cut."""
        return {
            **super().depends_on(config),
            "training": self.training,
            "weights": self.weights,
            "num_replayed": self.num_replayed,
            "encoder": config.encoder,
            **({} if config.review == ReviewConfig() else {"review": config.review}),
        }

    def check(self, config: RunConfig) -> None:
        """Refuse settings of the preset's that a training does not take."""
        super().check(config)
        if config.agent.train is not None:
            train_settings(config, "train", self.training)

    def training_settings(self, context: Context) -> TrainSettings:
        """Those of ``agent.train``, with what the preset insists on."""
        return train_settings(context.config, "train", self.training)

    def samples(self, context: Context) -> Sequence[WeightedTrajectory]:
        """Calibrations that a person refused stay out, edited ones count as edited; raises ReviewError to wait."""
        standings = context.buffer.standings()
        config = context.config.review
        rounds = [self._of_round(i) for i in range(self.round_index + 1)]
        found = [stage.results(context) for stage in rounds]
        self._wait_for_people(context, [r for results in found for r in results], standings)
        encoder = context.encoder()
        distance = action_distance(encoder)
        samples: list[WeightedTrajectory] = []
        for stage, results in zip(rounds, found, strict=True):
            samples += weighted_samples(
                effective_results(results, standings),
                stage.explored_along(context),
                self.weights,
                distance=distance,
                encoder=encoder.name,
                on_threshold=lambda threshold: context.say(f"  {threshold.line()}"),
                approved=lambda c: standing_of(c.calibration_id, c.status, standings, config) != "waiting",
            )
        replayed = subsample(context.config.seed, demonstrations(context), self.num_replayed)
        samples += [WeightedTrajectory(trajectory=e) for e in replayed]
        if not samples:
            raise DataError(
                "no training samples: no calibration was accepted and nothing else is switched on; the agent may "
                "already do what the expert does, or the horizon is too short (see the calibrations in buffer.sqlite)"
            )
        return samples

    def _of_round(self, index: int) -> Calibrate:
        """The calibration of an earlier round."""
        return Calibrate(
            round_index=index,
            settings=self.calibrate.settings,
            step_rewards=self.calibrate.step_rewards,
            num_experts=self.calibrate.num_experts,
            explore_from=self.calibrate.explore_from,  # pyright: ignore[reportArgumentType]
        )

    def _wait_for_people(
        self, context: Context, results: Sequence[ExpertResult], standings: Mapping[str, Standing]
    ) -> None:
        ids, needed = waiting(results, standings, context.config.review)
        if not ids:
            return
        mode = context.config.review.mode
        if mode == "auto":
            context.say(f"  {len(ids)} edited corrections wait for a second person and are left out")
            return
        raise ReviewError(
            f"training waits for people: {len(ids)} of {needed} calibrations are not decided (review.mode={mode}); "
            f"decide with `steca review {context.folder}`, then run the same command again"
        )

    def adopt(self, context: Context, source: Stored) -> bool:
        """Take over a model only where the same corrections were refused and edited."""
        with source.buffer() as other:
            theirs = _in_effect(other.standings())
        return theirs == _in_effect(context.buffer.standings()) and super().adopt(context, source)


def _in_effect(standings: Mapping[str, Standing]) -> dict[str, tuple[str, str]]:
    """What decisions change in a training."""
    found = {
        key: (s.word if s.word == "refused" else "", s.edit.after if s.edit is not None else "")
        for key, s in standings.items()
    }
    return {key: value for key, value in found.items() if value != ("", "")}


def action_distance(encoder: Encoder) -> Callable[[Sequence[str], Sequence[str]], float]:
    """DnDTW of two action sequences with an encoder."""
    return lambda a, b: float(dndtw(a, b, encoder=encoder))


def cosine(encoder: Encoder) -> Callable[[str, str], float]:
    """Cosine of two actions' encodings."""
    import numpy as np

    def of(a: str, b: str) -> float:
        x, y = np.asarray(encoder.encode([a, b]), dtype=np.float64)
        return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))

    return of


def _summary(counts: Counts, agreement: PaperAgreement, settings: CalibrationSettings) -> list[str]:
    """What was found, what the tie rule did, and how often the verdicts are the paper's."""
    return [f"  {line}" for line in (*counts.lines(settings.tie_rule), agreement.line())]
