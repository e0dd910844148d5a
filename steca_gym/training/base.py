"""What a trainer is: offline trainers fit a folder to samples, online trainers step live weights.

A new trainer implements one of the two protocols; it inherits nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from steca_gym.agent import Agent, Prompt
from steca_gym.errors import DataError
from steca_gym.trajectory import Trajectory

OnLog = Callable[[dict[str, float]], None]
"""called with ``step``, ``max_steps``, ``loss``, ``learning_rate``, ``grad_norm`` and a trainer's own metrics"""

SampleT = TypeVar("SampleT", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training did."""

    model: Path
    """folder of the trained model and its tokenizer, as ``save_pretrained`` writes them"""
    num_steps: int
    """optimizer steps, those before a resumption included"""
    num_samples: int
    """samples trained on"""
    num_cut: int
    """samples that were longer than ``max_length`` and were cut"""
    num_dropped: int
    """samples without a single token to train on (after the cut)"""
    num_tokens: int
    """tokens read by this call, padding excluded"""
    num_loss_tokens: int
    """of these, tokens that the loss covers"""
    padding_fraction: float
    """share of the computed positions that were padding, in [0, 1)"""
    first_loss: float
    """the trainer's loss, mean over the first tenth of the steps; for ``WeightedSFT`` in nats per covered token"""
    last_loss: float
    """mean over the last tenth of the steps"""
    seconds: float
    """wall time of the whole call"""
    train_seconds: float
    """wall time of the training loop alone"""
    precision: Literal["fp32", "bf16"]
    world_size: int
    """processes that trained together"""
    stopped_by: Literal["steps", "max_seconds"] = "steps"
    resumed_from_step: int = 0
    """0: from the start"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """the trainer's own figures, such as ``reward_accuracy``; means over the last tenth of the steps"""

    @property
    def tokens_per_second(self) -> float:
        """Tokens read per second of the training loop, in this process, padding excluded."""
        return self.num_tokens / max(self.train_seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for records and trackers."""
        plain = dataclasses.asdict(self)
        metrics = plain.pop("metrics")
        return {**plain, **metrics, "model": str(self.model), "tokens_per_second": round(self.tokens_per_second, 1)}


class Trainer(Protocol[SampleT]):
    """Fits a model folder to samples: weighted trajectories, preference pairs, or a type of your own.

    The loop that it serves::

        trainer = WeightedSFT(TrainSettings(num_epochs=1))       # settings are checked here
        for round_index in range(num_rounds):
            samples = ...                                        # collect with the model of the round before
            report = trainer.fit(model, samples, out / f"model-{round_index}", prompt=prompt)
            model = report.model
    """

    def fit(
        self, model: Path, data: Sequence[SampleT], out: Path, *, prompt: Prompt, on_log: OnLog | None = None
    ) -> TrainReport:
        """Train the model in folder ``model`` on ``data`` and write the result to ``out``.

        The same call after an interruption resumes; after the end it returns the report of the finished training.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeGroup:
    """Episodes of one task, with the advantages that a method gave them.

    Raises:
        DataError: lengths that do not fit together, episodes of several tasks, or numbers that are not finite.
    """

    episodes: tuple[Trajectory, ...]
    """episodes of one task; the loss covers their trainable steps"""
    advantages: tuple[tuple[float | tuple[float, ...], ...], ...]
    """for each episode one entry per step: a signed number for all tokens of the turn, or one number per token of it
    (``Step.token_ids``, and one more for the end-of-turn mark)"""
    log_probs: tuple[tuple[tuple[float, ...] | None, ...], ...] | None = None
    """for each episode one entry per step: log-probabilities of the sampled tokens when they were sampled, in the order
    of ``Step.token_ids``, with or without the end-of-turn mark. None: not known; trainers that need them compute them
    from the weights at the start of a step"""

    def __post_init__(self) -> None:
        """Validate."""
        if len({episode.task_id for episode in self.episodes}) != 1:
            tasks = sorted({episode.task_id for episode in self.episodes})
            raise DataError(f"expected episodes of one task in a group, got {len(self.episodes)} of tasks {tasks}")
        for name, table in (("advantages", self.advantages), ("log_probs", self.log_probs)):
            if table is None:
                continue
            expected, got = [len(episode) for episode in self.episodes], [len(row) for row in table]
            if expected != got:
                raise DataError(f"{name}: expected one entry per step, {expected} for the episodes, got {got}")
            for row in table:
                for entry in row:
                    numbers = () if entry is None else entry if isinstance(entry, Sequence) else (entry,)
                    bad = [number for number in numbers if not math.isfinite(number)]
                    if bad:
                        raise DataError(
                            f"{name} of task {self.episodes[0].task_id!r} must be finite numbers, got {bad[0]}"
                        )


@runtime_checkable
class OnlineTrainer(Protocol):
    """Improves the weights that an agent is playing with: no model folder and no reload between steps.

    The loop that it serves::

        trainer = PolicyGradient(settings, agent=agent, prompt=prompt)
        if saved.exists():
            trainer.restore(saved)                     # continues as if it had never stopped
        while trainer.num_steps < total:
            episodes = collector.run(requests)         # played by trainer.agent, with the current weights
            groups = ...                               # the method's advantages
            metrics = trainer.step(groups)
            trainer.save(saved)
    """

    agent: Agent
    """plays with the live weights"""
    num_steps: int
    """calls of ``step`` so far, those before a restoration included"""

    def step(self, groups: Sequence[EpisodeGroup]) -> Mapping[str, float]:
        """Improve the weights on these episodes; returns metrics."""
        ...

    def save(self, out: Path) -> None:
        """Write weights, tokenizer and optimizer state; ``out`` is a model folder that any agent can load."""
        ...

    def restore(self, path: Path) -> None:
        """Load what ``save`` wrote into the live weights; later steps are those of an uninterrupted training."""
        ...
