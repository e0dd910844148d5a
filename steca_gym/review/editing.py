"""Edits of a correction: another reflection, or another action, which is executed before it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from steca_gym.agent import Agent, Prompt, TurnFormat
from steca_gym.calibration import Calibration
from steca_gym.calibration.correction import as_script, label, with_reflection
from steca_gym.calibration.records import Reflection
from steca_gym.calibration.repair import make_repairer
from steca_gym.collectors import Collector
from steca_gym.collectors.episodes import Episode, EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.errors import DataError, WorldError
from steca_gym.trajectory import Step, Trajectory

MAX_CHARS = 4000
"""of an edited reflection or action"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a person changed."""

    reflection: str
    """the thought before the right action; may be empty"""
    action: str
    """the right action, one line"""

    def __post_init__(self) -> None:
        """Refuse what is no turn."""
        for name, text in (("reflection", self.reflection), ("action", self.action)):
            if len(text) > MAX_CHARS:
                raise DataError(f"the {name} has {len(text)} characters, expected at most {MAX_CHARS}")
        if not self.action.strip() or "\n" in self.action.strip():
            raise DataError(f"an action is one line that is not empty, got {self.action[:80]!r}")


class Editor:
    """Makes the edited form of a calibration.

    Args:
        make_env: makes an environment of the run's fingerprint.
        agent: any agent; it is never asked, since every action is given.
        prompt: what stands before every episode.
        expert: continues after an edited action where the rest of the correction no longer fits; None: the world's own.
        turn_format: how turns are written, as in the run.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        agent: Agent,
        *,
        prompt: Prompt | None = None,
        expert: Agent | None = None,
        turn_format: str | TurnFormat | None = None,
    ) -> None:
        """Make nothing yet."""
        self._make_env, self._agent, self._prompt, self._expert = make_env, agent, prompt, expert
        self._turn_format = turn_format

    def apply(self, calibration: Calibration, edit: Edit, *, who: str) -> Calibration:
        """The edited calibration.

        A changed action is played after the same history: first with the steps that followed the old one, then with an
        expert's. A changed reflection alone needs no execution: a thought does not move a world.

        Raises:
            DataError: the calibration was refused, or the edited action does not lead to a win; the line says why.
        """
        if calibration.status != "accepted":
            raise DataError("this calibration was refused by its execution; there is nothing to edit")
        reflection, action = edit.reflection.strip(), edit.action.strip()
        at = calibration.step + (calibration.kind == "corrected")
        right = calibration.trajectory.steps[at]
        changed = calibration
        if action != right.action:
            changed = self._executed(calibration, at, action)
        if reflection != calibration.reflection.text or changed is not calibration:
            written = Reflection(text=reflection, source=f"person:{who}")
            steps = with_reflection(changed.trajectory.steps, at, written)
            trajectory = replace(changed.trajectory, steps=steps, trajectory_id="").with_id()
            changed = replace(changed, reflection=written, trajectory=trajectory)
        if changed is calibration:
            raise DataError("nothing was changed")
        return changed

    def _executed(self, calibration: Calibration, at: int, action: str) -> Calibration:
        old = calibration.trajectory
        history = as_script(old.steps[:at])
        new = as_script([replace(old.steps[at], action=action, thought="", text="", token_ids=None)])
        after = () if calibration.kind == "fatal" else old.steps[at + 1 :]
        tried = self._play(old, (*history, *new, *as_script(after)))
        self._check_start(old, tried, at)
        step = tried.trajectory.steps[at]
        if not step.valid:
            raise DataError(f"the world did not understand {action!r}: {step.observation[:200]!r}")
        repaired = not tried.trajectory.won or not all(s.valid for s in tried.trajectory.steps[at:])
        if repaired:
            tried = self._continued(old, (*history, *new))
        if calibration.kind == "fatal":
            played = tried.trajectory
            steps = (*old.steps[:at], replace(played.steps[at], source="reflection", trainable=True))
            trajectory = replace(old, steps=steps, score=played.steps[at].score)
        else:
            trajectory = replace(tried.trajectory, steps=label(tried.trajectory.steps, calibration.step))
        reason = "edited; an expert continued from the edited action" if repaired else "edited"
        return replace(calibration, trajectory=trajectory, expert_action=action, reason=reason, repaired=repaired)

    def _play(self, old: Trajectory, script: Sequence[Step], *, capture: bool = False) -> Episode:
        request = EpisodeRequest(
            task_id=old.task_id, seed=old.seed, script=tuple(script), max_agent_turns=0, capture=capture
        )
        with Collector(
            self._make_env, self._agent, prompt=self._prompt, num_envs=1, turn_format=self._turn_format
        ) as collector:
            episode = collector.run([request])[0]
        if episode.trajectory.status == "error":
            raise DataError(f"the edited action could not be executed: {episode.trajectory.error}")
        return episode

    @staticmethod
    def _check_start(old: Trajectory, tried: Episode, at: int) -> None:
        """The same history has to lead to the same place."""
        played = tried.trajectory
        if played.fingerprint != old.fingerprint:
            raise WorldError(
                f"the environment is {played.fingerprint!r} here, the correction was found in {old.fingerprint!r}; "
                "review the run with the settings that it was made with"
            )
        told = [s.observation for s in old.steps[:at]]
        if len(played.steps) <= at or [s.observation for s in played.steps[:at]] != told:
            raise WorldError("the same actions did not lead to the same place: the edit cannot be executed here")

    def _continued(self, old: Trajectory, script: Sequence[Step]) -> Episode:
        """The edited action, and then an expert to the end."""
        episode = self._play(old, script, capture=True)
        if episode.trajectory.won:
            return episode
        if episode.trajectory.status in ("terminated", "truncated") or not episode.forks:
            raise DataError("the edited action ends the episode, and it is not won")
        repair = make_repairer(self._expert, self._make_env, prompt=self._prompt, turn_format=self._turn_format)
        assert repair is not None
        try:
            found = repair(episode.forks[-1])
        finally:
            if (close := getattr(repair, "close", None)) is not None:
                close()
        if not found.steps:
            raise DataError(f"the edited action does not lead to a win: {found.reason}")
        done = self._play(old, (*script, *as_script(found.steps)))
        if not done.trajectory.won:
            raise DataError("the edited action was executed, an expert continued, and the task was not solved")
        return done
