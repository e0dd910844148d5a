"""PPO with a turn-level critic (Schulman et al. 2017, arXiv 1707.06347; advantages: arXiv 1506.02438)."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steca_gym.agent import Prompt
from steca_gym.collectors.episodes import Episode
from steca_gym.errors import CheckpointError, ConfigError
from steca_gym.files import write_atomically
from steca_gym.methods.base import Stage
from steca_gym.methods.online import OnlineTraining, PolicyConfig, RolloutConfig, discounted_returns, rewards_of
from steca_gym.methods.stages import Demonstrations, WarmUp
from steca_gym.trajectory import Trajectory, WeightedTrajectory

if TYPE_CHECKING:
    from steca_gym.training import EpisodeGroup, PolicyGradient

Array = NDArray[np.float64]

_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """Settings of the critic and of the advantages."""

    gamma: float = 1.0
    """discount per turn, in (0, 1]"""
    gae_lambda: float = 0.95
    """weight of longer returns in generalized advantage estimation, in [0, 1]"""
    window: int = 4
    """latest steps whose turns the critic is fitted to, >= 1"""
    penalty: float = 1.0
    """of the ridge regression, > 0"""
    normalize: bool = True
    """give the advantages of a step mean 0 and standard deviation 1"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not 0 < self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ConfigError(
                f"gamma must lie in (0, 1] and gae_lambda in [0, 1], got {self.gamma} and {self.gae_lambda}"
            )
        if self.window < 1 or not (self.penalty > 0 and math.isfinite(self.penalty)):
            raise ConfigError(f"window must be >= 1 and penalty > 0, got {self.window} and {self.penalty}")


class PPO:
    """Warm up; roll out episodes; advantages of turns by a critic of the state before each turn.

    The critic is linear in the policy's last hidden state at the token before a turn. The gradient does not flow into
    the policy through it. It is fitted by ridge regression to the returns of the latest steps, always after the
    advantages of a step are computed.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of PPO."""

        rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(num_tasks=64, group_size=1))
        """how many episodes, for how many steps"""
        policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(num_minibatches=4))
        """settings of the policy's loss"""
        critic: CriticConfig = field(default_factory=CriticConfig)
        """settings of the critic and of the advantages"""

    def __init__(self, config: Config) -> None:
        """See the class."""
        self.config = config

    def stages(self) -> list[Stage]:
        """Demonstrations, warm-up, online training."""
        c = self.config
        return [Demonstrations(), WarmUp(), OnlineTraining(c.rollout, c.policy, CriticAdvantages(c.critic))]


class CriticAdvantages:
    """Generalized advantage estimation over turns, with a critic that is fitted as the training continues."""

    needs_states = False

    def __init__(self, config: CriticConfig) -> None:
        """See ``CriticConfig``."""
        self.config = config
        self.critic = TurnCritic(window=config.window, penalty=config.penalty)
        self.metrics: Mapping[str, float] = {}

    def settings(self) -> Mapping[str, Any]:
        """The settings of the critic."""
        return {"critic": self.config}

    def begin(self, experts: Sequence[Trajectory]) -> None:
        """The demonstrations are not needed."""

    def __call__(self, groups: Sequence[Sequence[Episode]], trainer: PolicyGradient) -> list[EpisodeGroup]:
        """Advantages by the critic as it is; then the critic is fitted to these episodes too."""
        from steca_gym.training import EpisodeGroup

        c = self.config
        episodes = [e.trajectory for group in groups for e in group]
        hidden = hidden_states(
            trainer.agent, trainer.prompt, episodes, batch_size=trainer.settings.per_device_batch_size
        )
        rewards = [rewards_of(e) for e in episodes]
        values = [self.critic.values(h) for h in hidden]
        found = [gae(r, v.tolist(), c.gamma, c.gae_lambda) for r, v in zip(rewards, values, strict=True)]
        returns = [discounted_returns(r, c.gamma) for r in rewards]
        self.metrics = {"explained_variance": explained_variance(values, returns)}
        self.critic.add(np.concatenate(hidden), np.concatenate([np.asarray(r) for r in returns]))
        if c.normalize:
            found = standardized(found)
        rest = iter(tuple(f) for f in found)
        return [
            EpisodeGroup(episodes=tuple(e.trajectory for e in group), advantages=tuple(next(rest) for _ in group))
            for group in groups
        ]

    def save(self, folder: Path, num_steps: int) -> None:
        """Write the critic; the one before it is kept until the weights of this step are saved too."""
        self.critic.save(folder / f"critic-{num_steps}.npz")
        saved = sorted(folder.glob("critic-*.npz"), key=lambda f: int(f.stem.split("-")[1]))
        for old in saved[:-2]:
            old.unlink()

    def restore(self, folder: Path, num_steps: int) -> None:
        """Load the critic of the saved weights; raises CheckpointError where it is missing or damaged."""
        self.critic.restore(folder / f"critic-{num_steps}.npz")


class TurnCritic:
    """Predicts the return from the hidden state before a turn: ridge regression on the latest steps.

    Args:
        window: steps whose turns are kept, >= 1.
        penalty: of the ridge regression, > 0.
    """

    def __init__(self, *, window: int, penalty: float) -> None:
        """Begin with the value 0 everywhere."""
        self.window, self.penalty = window, penalty
        self._kept: list[tuple[Array, Array]] = []
        self._weights: Array | None = None

    def values(self, hidden: Array) -> Array:
        """Values of the states, shape (n,), in [0, 1] as all scores are; ``hidden``: shape (n, width)."""
        if self._weights is None:
            return np.zeros(len(hidden))
        return np.clip(_rows(hidden) @ self._weights, 0.0, 1.0)

    def add(self, hidden: Array, returns: Array) -> None:
        """Take the turns of a step, forget those of the oldest, and fit; ``hidden``: (n, width), ``returns``: (n,)."""
        self._kept = [*self._kept, (np.asarray(hidden, dtype=np.float64), np.asarray(returns, dtype=np.float64))]
        self._kept = self._kept[-self.window :]
        self._fit()

    def _fit(self) -> None:
        x = np.concatenate([_rows(hidden) for hidden, _ in self._kept])
        y = np.concatenate([returns for _, returns in self._kept])
        ridge = self.penalty * np.eye(x.shape[1])
        ridge[-1, -1] = 1e-9  # the constant is not penalized
        self._weights = np.asarray(np.linalg.solve(x.T @ x + ridge, x.T @ y), dtype=np.float64)

    def save(self, path: Path) -> None:
        """Write the kept turns; raises StorageError."""
        arrays = {f"{name}{i}": a for i, kept in enumerate(self._kept) for name, a in zip("xy", kept, strict=True)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Read what ``save`` wrote; raises CheckpointError."""
        try:
            with np.load(path) as arrays:
                count = len(arrays.files) // 2
                self._kept = [(arrays[f"x{i}"], arrays[f"y{i}"]) for i in range(count)]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"cannot read the critic {str(path)!r}: {' '.join(str(error).split())}; remove the model's folder "
                "beside it to train again"
            ) from error
        if self._kept:
            self._fit()


def _rows(hidden: Array) -> Array:
    """Features: the hidden states at root mean square 1, and a constant."""
    x = np.asarray(hidden, dtype=np.float64)
    x = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-12)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Generalized advantage estimation over the turns of an episode, whose state after the last turn is worth 0.

    ``A_t = sum_k (gamma * lam)^k * (r_{t+k} + gamma * V_{t+k+1} - V_{t+k})``. An episode that the horizon cuts ends
    there as well: its outcome is the score that it had.
    """
    advantages: list[float] = []
    running, after = 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        running = reward + gamma * after - value + gamma * lam * running
        after = value
        advantages.append(running)
    return advantages[::-1]


def standardized(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """All numbers with mean 0 and standard deviation 1 over all rows; equal numbers become 0."""
    flat = [x for row in rows for x in row]
    mean = math.fsum(flat) / len(flat)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in flat) / len(flat))
    return [[(x - mean) / (deviation + 1e-6) for x in row] for row in rows]


def explained_variance(values: Sequence[Array], returns: Sequence[Sequence[float]]) -> float:
    """Share of the returns' variance that the values explain, at most 1; 0 where all returns are equal."""
    v, r = np.concatenate(list(values)), np.concatenate([np.asarray(x, dtype=np.float64) for x in returns])
    variance = float(np.var(r))
    return 0.0 if variance == 0 else 1.0 - float(np.var(r - v)) / variance


def hidden_states(agent: Any, prompt: Prompt, episodes: Sequence[Trajectory], *, batch_size: int) -> list[Array]:
    """The policy's last hidden state at the token before each turn, one array of shape (n_turns, width) per episode."""
    import torch

    from steca_gym.training.samples import IGNORED, encode_samples

    rows: list[tuple[int, tuple[int, ...], list[int]]] = []
    for index, episode in enumerate(episodes):
        sample = WeightedTrajectory(trajectory=episode)
        for encoded in encode_samples(agent.tokenizer, [sample], prompt, max_length=_NO_LIMIT).samples:
            covered = [label != IGNORED for label in encoded.labels]
            first = [i for i, here in enumerate(covered) if here and i > 0 and not covered[i - 1]]
            rows.append((index, encoded.input_ids, [i - 1 for i in first]))
    found: list[list[Array]] = [[] for _ in episodes]
    model = agent.model
    mode = model.training
    model.eval()
    try:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            length = max(len(ids) for _, ids, _ in part)
            ids = torch.zeros((len(part), length), dtype=torch.long)
            mask = torch.zeros((len(part), length), dtype=torch.long)
            for place, (_, tokens, _) in enumerate(part):
                ids[place, : len(tokens)] = torch.tensor(tokens)
                mask[place, : len(tokens)] = 1
            with torch.no_grad():
                # The backbone alone: logits over the vocabulary are not needed.
                states = model.base_model(
                    input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
                )[0]
            for place, (index, _, positions) in enumerate(part):
                found[index].append(states[place, positions].double().cpu().numpy())
    finally:
        model.train(mode)
    return [np.concatenate(parts) for parts in found]
