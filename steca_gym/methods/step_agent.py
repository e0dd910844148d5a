"""StepAgent: step-wise rewards from the comparison with the expert (Deng et al. 2024, arXiv 2411.03817).

Both of the paper's variants. *Implicit* reward: DPO on the expert's and the agent's turn in each state of the
demonstrations. *Inverse* reinforcement learning: online training on a reward that tells the expert's turns from the
agent's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from steca_gym.collectors.episodes import Episode
from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.methods.alternatives import AskAlongExperts, alternatives
from steca_gym.methods.base import Stage
from steca_gym.methods.context import Context
from steca_gym.methods.eto import check_sampling
from steca_gym.methods.online import OnlineTraining, PolicyConfig, RolloutConfig, Stateless, discounted_returns
from steca_gym.methods.ppo import standardized
from steca_gym.methods.stages import Demonstrations, PreferenceConfig, TrainOnPairs, WarmUp, demonstrations
from steca_gym.registry import explain_unknown
from steca_gym.seeding import derive_draw
from steca_gym.step_rewards.critic import LogisticRidge
from steca_gym.trajectory import PreferencePair, Trajectory

if TYPE_CHECKING:
    from steca_gym.training import EpisodeGroup, PolicyGradient

Array = NDArray[np.float64]

_WIDTH = 1024
_MAX_REWARD = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseConfig:
    """Settings of the inverse variant."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """how many episodes, for how many steps"""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """settings of the policy's loss"""
    gamma: float = 0.9
    """discount per turn of the learnt rewards, in [0, 1]; 0: each turn by its own reward"""
    max_turns: int = 512
    """turns of each side that the reward is fitted to in a step, drawn with a seed, >= 2"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 <= self.gamma <= 1 or self.max_turns < 2:
            raise ConfigError(f"gamma must lie in [0, 1] and max_turns be >= 2, got {self.gamma} and {self.max_turns}")


class StepAgent:
    """Warm up; then learn turn by turn from the comparison with the expert.

    ``variant=implicit``: ask the agent in every state of the demonstrations and prefer the expert's turn (offline).
    ``variant=inverse``: a discriminator rewards turns that look like the expert's (online; no outcome is used).
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of StepAgent."""

        num_rounds: int = 1
        """rounds of asking and training, >= 1"""
        num_experts: int | None = None
        """expert trajectories that the agent is asked along in each round, drawn with the seed; None: all"""
        num_samples: int = 1
        """own turns per state, >= 1"""
        temperature: float = 1.0
        """of the own turns, >= 0; 0 is greedy"""
        variant: Literal["implicit", "inverse"] = "implicit"
        """where the reward of a turn comes from; ``inverse`` uses ``inverse`` only, ``implicit`` all other settings"""
        loss: PreferenceConfig = field(default_factory=PreferenceConfig)
        """settings of the preference loss"""
        inverse: InverseConfig = field(default_factory=InverseConfig)
        """settings of the inverse variant"""

        def __post_init__(self) -> None:
            """Refuse what cannot work."""
            if self.variant not in ("implicit", "inverse"):
                raise UnknownNameError(explain_unknown("variant", self.variant, ("implicit", "inverse")))
            check_sampling(self.num_rounds, self.num_samples, self.temperature, self.num_experts)

    def __init__(self, config: Config) -> None:
        """See the class."""
        self.config = config

    def stages(self) -> list[Stage]:
        """Demonstrations and warm-up, then own turns and training, once a round; or online training."""
        c = self.config
        stages: list[Stage] = [Demonstrations(), WarmUp()]
        if c.variant == "inverse":
            rewards = LearntRewards(gamma=c.inverse.gamma, max_turns=c.inverse.max_turns)
            return [*stages, OnlineTraining(c.inverse.rollout, c.inverse.policy, rewards)]
        for round_index in range(c.num_rounds):
            asked = AskAlongExperts(
                num_samples=c.num_samples,
                temperature=c.temperature,
                num_experts=c.num_experts,
                round_index=round_index,
            )
            stages += [asked, TrainOnTurnPairs(round_index, c.loss)]
        return stages


class TrainOnTurnPairs(TrainOnPairs):
    """Train on this round's pairs of turns."""

    def pairs(self, context: Context) -> Sequence[PreferencePair]:
        """The pairs; their kind is ``turn``."""
        return turn_pairs(demonstrations(context), alternatives(context, self.round_index))


def turn_pairs(experts: Sequence[Trajectory], own: Sequence[Trajectory]) -> list[PreferencePair]:
    """Pairs of the expert's turn and the agent's after one history.

    Args:
        experts: at most one trajectory per task.
        own: each an expert's steps before t and the agent's turn at t.
    """
    by_task = {e.task_id: e for e in experts}
    pairs = []
    for played in own:
        step, expert = len(played) - 1, by_task[played.task_id]
        prefix = _beginning(expert, step)
        pairs.append(PreferencePair(prefix=prefix, chosen=_beginning(expert, step + 1), rejected=played, kind="turn"))
    return pairs


def _beginning(expert: Trajectory, num_steps: int) -> Trajectory:
    steps = expert.steps[:num_steps]
    return dataclasses.replace(expert, steps=steps, score=0.0, won=False, status="running", trajectory_id="")


class LearntRewards(Stateless):
    """Advantages from a reward that tells the expert's turns from the agent's, refitted in every step.

    The reward of a turn is the log-odds that it is the expert's, ``log D - log(1 - D)``, clipped to [-5, 5]. ``D`` is a
    logistic regression on hashed words of the action, alone and with words of the observation before it and of the
    goal. It is fitted twice, each time to one half of the trajectories of both sides, and judges the other half: a turn
    is never judged by a reward that was fitted to it.
    """

    def __init__(self, *, gamma: float, max_turns: int) -> None:
        """See ``InverseConfig``."""
        self.gamma, self.max_turns = gamma, max_turns
        self.metrics: Mapping[str, float] = {}
        self._experts: list[Array] = []

    def settings(self) -> Mapping[str, Any]:
        """Both settings."""
        return {"gamma": self.gamma, "max_turns": self.max_turns}

    def begin(self, experts: Sequence[Trajectory]) -> None:
        """Take the expert's turns."""
        self._experts = [turn_features(e) for e in experts]

    def __call__(self, groups: Sequence[Sequence[Episode]], trainer: PolicyGradient) -> list[EpisodeGroup]:
        """Fit the reward to these episodes and the demonstrations; advantages are standardized over the step."""
        from steca_gym.training import EpisodeGroup

        episodes = [e.trajectory for group in groups for e in group]
        rewards = self.rewards([turn_features(e) for e in episodes], step=trainer.num_steps)
        found = iter(standardized([discounted_returns(r, self.gamma) for r in rewards]))
        return [
            EpisodeGroup(
                episodes=tuple(e.trajectory for e in group), advantages=tuple(tuple(next(found)) for _ in group)
            )
            for group in groups
        ]

    def rewards(self, own: Sequence[Array], *, step: int) -> list[list[float]]:
        """The rewards of all turns; ``own``: features of each episode's turns, shape (n_turns, width)."""
        made: list[list[float]] = [[] for _ in own]
        right = num_judged = 0
        for half in (0, 1):
            fitted = [rows for i, rows in enumerate(own) if i % 2 != half] or list(own)
            experts = [rows for i, rows in enumerate(self._experts) if i % 2 != half] or self._experts
            mine = _draw(np.concatenate(fitted), self.max_turns, step)
            theirs = _draw(np.concatenate(experts), self.max_turns, step)
            x = np.concatenate([mine, theirs])
            y = np.concatenate([np.zeros(len(mine)), np.ones(len(theirs))])
            # Both sides count alike, whichever has more turns.
            counts = np.concatenate([np.full(len(mine), 1.0), np.full(len(theirs), len(mine) / len(theirs))])
            discriminator = LogisticRidge(penalty=1.0)
            discriminator.fit(x, y, counts)
            for index in range(half, len(own), 2):
                p = np.clip(discriminator.predict(own[index]), 1e-6, 1 - 1e-6)
                odds = np.log(p) - np.log1p(-p)
                made[index] = np.clip(odds, -_MAX_REWARD, _MAX_REWARD).tolist()
                right += int(np.sum(p < 0.5))
                num_judged += len(p)
        flat = [r for row in made for r in row]
        self.metrics = {
            "reward": math.fsum(flat) / max(len(flat), 1),
            "share_told_apart": right / max(num_judged, 1),
        }
        return made


def turn_features(trajectory: Trajectory) -> Array:
    """Hashed words of each turn, shape (n_turns, 1024), rows of length 1.

    The words of the action, each alone, with each of the last 24 words of the observation before it, and with each of
    the last 8 words of the goal.
    """
    goal = (trajectory.goal or trajectory.first_observation).casefold().split()[-8:]
    rows = np.zeros((len(trajectory), _WIDTH))
    seen = trajectory.first_observation
    for row, step in zip(rows, trajectory.steps, strict=True):
        words = step.action.casefold().split() if step.parsed else ["<unreadable>"]
        parts = [f"a:{w}" for w in words] + [f"a:{' '.join(words)}"]
        parts += [f"o:{w}|{o}" for w in words for o in seen.casefold().split()[-24:]]
        parts += [f"g:{w}|{g}" for w in words for g in goal]
        for part in parts:
            digest = hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=4).digest()
            number = int.from_bytes(digest, "big")
            row[number % _WIDTH] += 1.0 if number & 0x8000_0000 else -1.0
        row /= max(float(np.linalg.norm(row)), 1e-12)
        seen = step.observation
    return rows


def _draw(rows: Array, count: int, step: int) -> Array:
    """At most ``count`` of the rows, drawn with a seed of the step's own."""
    if len(rows) <= count:
        return rows
    order = np.random.default_rng(derive_draw("discriminator", step)).permutation(len(rows))
    return rows[np.sort(order[:count])]
