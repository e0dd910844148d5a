"""Agents without a model: the world's expert, a random one, and one that repeats recordings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from steca_gym.agent import Need, Turn, TurnFormat, TurnRequest, find_turn_format
from steca_gym.errors import AgentError, DataError
from steca_gym.trajectory import Trajectory, read_jsonl


class _AtOnce:
    """An agent that answers at once; as a streaming one it keeps no world waiting for the others.

    Args:
        turn_format: how turns are written: "react" (default), "tools", "json", "xml" or ``module:Object``.
    """

    is_clairvoyant = False

    def __init__(self, turn_format: str | TurnFormat | None = None) -> None:
        self._answers: dict[str, Turn | Exception] = {}
        self._format = find_turn_format(turn_format)

    def _turn(self, request: TurnRequest) -> Turn:
        raise NotImplementedError

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request; raises AgentError for one that cannot be answered."""
        return [self._turn(request) for request in requests]

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Answer each request; an AgentError takes the place of its turn."""
        for request in requests:
            try:
                self._answers[request.episode_id] = self._turn(request)
            except AgentError as error:
                self._answers[request.episode_id] = error

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """All answers since the last call."""
        answers = list(self._answers.items())
        self._answers.clear()
        return answers

    def release(self, episode_ids: Iterable[str]) -> None:
        """Drop answers that were not fetched."""
        for episode_id in episode_ids:
            self._answers.pop(episode_id, None)


class ExpertAgent(_AtOnce):
    """Takes the action of the world's own expert, with the expert's reason as the thought.

    The expert knows the world's state, not only the conversation (``is_clairvoyant``). Where the world has no expert
    action from the current state, the episode fails with an AgentError.
    """

    name = "expert"
    is_clairvoyant = True
    needs: frozenset[Need] = frozenset({"expert_action"})

    def _turn(self, request: TurnRequest) -> Turn:
        if request.expert_action is None:
            raise AgentError(
                f"the world has no expert action at turn {request.turn}; "
                "use a world with an expert that reaches this state, or another agent"
            )
        return Turn(text=self._format.render(request.expert_thought, request.expert_action))


class RandomAgent(_AtOnce):
    """Picks one of the admissible actions uniformly at random; the episode's seed and the turn decide.

    Where the world lists none, the episode fails with an AgentError.
    """

    name = "random"
    needs: frozenset[Need] = frozenset({"admissible_actions"})

    def _turn(self, request: TurnRequest) -> Turn:
        actions = request.admissible_actions
        if not actions:
            raise AgentError(
                f"no admissible actions at turn {request.turn} (got {actions!r}); "
                "the random agent needs a world that lists them"
            )
        rng = np.random.default_rng([request.seed & 0xFFFFFFFFFFFFFFFF, request.turn])
        return Turn(text=self._format.render("", actions[int(rng.integers(len(actions)))]))


class ReplayAgent(_AtOnce):
    """Repeats recorded turns, with their token ids where these were recorded.

    The first observation (and the seed, where it was recorded) selects the recording, the turn selects the step. Where
    nothing (more) was recorded, the episode fails with an AgentError.

    Args:
        trajectories: the recordings; of several with the same first observation and seed the last one counts.
    """

    name = "replay"
    needs: frozenset[Need] = frozenset()

    def __init__(self, trajectories: Iterable[Trajectory]) -> None:
        """See the class."""
        super().__init__()
        self._by_seed: dict[tuple[str, int], Trajectory] = {}
        self._by_text: dict[str, Trajectory] = {}
        for trajectory in trajectories:
            self._by_seed[trajectory.first_observation, trajectory.seed] = trajectory
            self._by_text[trajectory.first_observation] = trajectory

    @classmethod
    def from_file(cls, path: str | Path) -> ReplayAgent:
        """Make an agent from lines of JSON, e.g. ``trajectories.jsonl`` of ``steca export``; raises DataError."""
        if not Path(path).is_file():
            raise DataError(f"no recordings at {str(path)!r}; `steca export run=PATH` writes them")
        return cls(read_jsonl(Path(path)))

    @classmethod
    def from_mapping(cls, actions: Mapping[str, Sequence[str]]) -> ReplayAgent:
        """Make an agent from bare actions by first observation."""
        from steca_gym.trajectory import Step

        return cls(
            Trajectory(
                task_id="",
                first_observation=first,
                steps=tuple(Step(action=action, observation="") for action in recorded),
            )
            for first, recorded in actions.items()
        )

    def _turn(self, request: TurnRequest) -> Turn:
        # 2t messages precede turn t after the first observation, whatever the prompt holds.
        place = len(request.messages) - 1 - 2 * request.turn
        first = request.messages[place].content if place >= 0 else ""
        recording = self._by_seed.get((first, request.seed)) or self._by_text.get(first)
        if recording is None:
            raise AgentError(f"nothing was recorded for an episode that begins {first[:60]!r}")
        if request.turn >= len(recording.steps):
            raise AgentError(
                f"the recording of {first[:60]!r} ends after {len(recording.steps)} turns, "
                f"asked for turn {request.turn}; the world or its seed differs from the recorded one"
            )
        step = recording.steps[request.turn]
        ids = step.token_ids
        return Turn(
            text=step.turn_text(),
            token_ids=ids,
            num_sampled_tokens=0 if ids is None else len(ids),
            truncated=step.truncated,
        )


class ImportedAgent(ReplayAgent):
    """Demonstrates what `steca import` wrote: ``expert=imported expert.path=FILE``.

    A run plays exactly these recordings, under their own seeds, in place of asking an expert for each training task.
    """

    name = "imported"

    def __init__(self, path: str | Path) -> None:
        """Read the recordings; raises DataError."""
        if not Path(path).is_file():
            raise DataError(f"no demonstrations at {str(path)!r}; `steca import FILE env=... to=...` writes them")
        self.recorded: tuple[Trajectory, ...] = tuple(read_jsonl(Path(path)))
        """in the order of the file"""
        if not self.recorded:
            raise DataError(f"{str(path)!r} holds no demonstrations; `steca import` writes them")
        super().__init__(self.recorded)
