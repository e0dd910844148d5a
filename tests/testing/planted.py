"""Worlds with one planted fault each, and the check that is there for it.

``python -m tests.testing.planted`` prints what the conformance kit says of each.
"""

from __future__ import annotations

import math
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium

from steca_gym.env import Outcome, TextEnv
from steca_gym.errors import DataError
from steca_gym.testing import CheckSettings, check_text_env
from tests.fakes import CorridorWorld

QUICK = CheckSettings(num_resets=120, new_process=False)
LEAK: list[Any] = []


class Sound(CorridorWorld):
    """The corridor, with tasks of its own in each split and no way to raise."""

    def splits(self):
        return ("train",)

    def act(self, action: str) -> Outcome:
        return super().act("nothing" if action == "crash" else action)


class NoText(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        super().start(task_id, seed)
        return Outcome(observation=7)


class NoVersion(Sound):
    version = ""


class SharedTasks(Sound):
    def splits(self):
        return ("train", "valid")


class AnyTask(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        try:
            return super().start(task_id, seed)
        except DataError:
            return super().start("corridor-2", seed)


class Dice(Sound):
    """Throws a die with a million sides at the start."""

    def start(self, task_id: str, seed: int) -> Outcome:
        outcome = super().start(task_id, seed)
        return Outcome(observation=f"{outcome.observation} Lot {random.getrandbits(20)}.")


class Remembers(Sound):
    """Counts its acts over all episodes and shows the count."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return Outcome(
            observation=f"{self.num_acts} {outcome.observation}",
            score=outcome.score,
            won=outcome.won,
            over=outcome.over,
            valid=outcome.valid,
        )


class HashOrder(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        text = " ".join({f"thing{i}" for i in range(12)})
        return Outcome(
            observation=f"{outcome.observation} {text}", score=outcome.score, won=outcome.won, over=outcome.over
        )


class ForgetsPlace(Sound):
    def load(self, token: Any) -> None:
        super().load(token)
        self._place = 0


class WonIsOver(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return Outcome(
            observation=outcome.observation,
            score=outcome.score,
            won=outcome.over,
            over=outcome.over,
            valid=outcome.valid,
        )


class Restarts(Sound):
    """Starts over by itself when the end is reached."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._begun = (task_id, seed)
        return super().start(task_id, seed)

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        if not outcome.over:
            return outcome
        first = super().start(*self._begun)
        return Outcome(observation=first.observation, score=outcome.score, won=outcome.won, over=True)


class Fragile(Sound):
    def act(self, action: str) -> Outcome:
        action.encode("ascii")
        return super().act(action)


class Echo(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        if outcome.valid:
            return outcome
        return Outcome(observation=f"I do not know {action!r}.", score=outcome.score, valid=False)


class Prints(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        print("loading")
        return super().start(task_id, seed)


class PrintsFromC(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        os.write(1, b"loading\n")
        return super().start(task_id, seed)


class SeedsGlobally(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        random.seed(seed)
        return super().start(task_id, seed)


class LeaksMemory(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        LEAK.append(list(range(10_000)))
        return super().start(task_id, seed)


class LeaksHandles(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        LEAK.append(tempfile.TemporaryFile())  # noqa: SIM115
        return super().start(task_id, seed)


class ListsTooMuch(Sound):
    def admissible_actions(self) -> tuple[str, ...]:
        return (*super().admissible_actions(), "fly")


class ExpertJumps(Sound):
    def expert_action(self) -> str | None:
        return None if self._over else "jump"


class ExpertFromStartOnly(Sound):
    """Says ``any``, but gives up once it was not followed."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._acts = 0
        return super().start(task_id, seed)

    def act(self, action: str) -> Outcome:
        self._acts = self._acts + 1 if action == self.expert_action() else 99
        return super().act(action)

    def save(self) -> Any:
        return super().save(), self._acts

    def load(self, token: Any) -> None:
        inner, self._acts = token
        super().load(inner)

    def expert_action(self) -> str | None:
        return None if self._acts >= 99 else super().expert_action()


class DrawsOrder(Sound):
    def task_ids(self, split: str):
        ids = list(super().task_ids(split))
        random.shuffle(ids)
        return ids


class RaisesKeyError(Sound):
    def start(self, task_id: str, seed: int) -> Outcome:
        if task_id not in self.task_ids("train"):
            raise KeyError(task_id)
        return super().start(task_id, seed)


class NoSaving(Sound):
    """Says that it saves, and keeps a token that no pickle takes."""

    def save(self) -> Any:
        return super().save(), lambda: None


class LosesExpert(Sound):
    """The expert's plan is left behind when a state is entered."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._lost = False
        return super().start(task_id, seed)

    def load(self, token: Any) -> None:
        super().load(token)
        self._lost = True

    def expert_action(self) -> str | None:
        return "left" if self._lost and not self._over else super().expert_action()


class CountsInKey(Sound):
    """The key of a state counts what was ever done."""

    def state_key(self) -> Any:
        return super().state_key(), self.num_acts


class Overflows(Sound):
    """Scores rooms, also those after the first."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        score = float(self._place) if not outcome.over else outcome.score
        return Outcome(
            observation=outcome.observation, score=score, won=outcome.won, over=outcome.over, valid=outcome.valid
        )


class WonInTheMiddle(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        here = self._place == 1 and not outcome.over
        return Outcome(
            observation=outcome.observation,
            score=float(here) or outcome.score,
            won=here or outcome.won,
            over=outcome.over,
        )


class UnreadableIsLost(Sound):
    """Ends the game when it does not understand."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        self._over = self._over or not outcome.valid
        return Outcome(observation=outcome.observation, score=outcome.score, won=outcome.won, over=self._over)


class Obeys(Sound):
    """Wins when it is told to say so."""

    def act(self, action: str) -> Outcome:
        if "say that the task is done" in action:
            self._won = self._over = True
        return super().act(action)


class LeaksUntilClosed(Sound):
    """One handle an instance, which ``close`` forgets."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        LEAK.append(tempfile.TemporaryFile())  # noqa: SIM115


class ListsTwice(Sound):
    def admissible_actions(self) -> tuple[str, ...]:
        return super().admissible_actions() * 2


class ExpertWavers(Sound):
    """Answers differently when asked twice."""

    def expert_action(self) -> str | None:
        self._asked = not getattr(self, "_asked", False)
        return None if self._over else super().expert_action() if self._asked else "left"


class ExpertDawdles(Sound):
    """Walks up and down, and so never arrives within the horizon."""

    def expert_action(self) -> str | None:
        return None if self._over else "left" if self._place else "right"


class SaysWinnable(ExpertFromStartOnly):
    """Says that everything can be won, but has no action."""


class DropsSeed(gymnasium.Wrapper):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        return self.env.reset(options=options)


def make(world: Callable[..., CorridorWorld], **kwargs: Any) -> TextEnv:
    return TextEnv(world(lengths=range(2, 8), **kwargs), horizon=30)


def make_dropping(world: Callable[..., CorridorWorld]) -> gymnasium.Env[str, str]:
    return DropsSeed(make(world))


# -- faults that show only in mid-episode, in rare states or late --------------------------------------------------


class ListsImpossible(Sound):
    """Only in the fourth room."""

    def admissible_actions(self) -> tuple[str, ...]:
        return (*super().admissible_actions(), *(["fly"] if self._place == 3 else []))


class ListsTwiceLater(Sound):
    def admissible_actions(self) -> tuple[str, ...]:
        return super().admissible_actions() * (2 if self._place == 3 else 1)


class ListsNothing(Sound):
    """In the fourth room, although the episode continues."""

    def admissible_actions(self) -> tuple[str, ...]:
        return () if self._place == 3 else super().admissible_actions()


class KeyWithoutPlace(Sound):
    def state_key(self) -> Any:
        return self._colour, self._over


class Lamp(Sound):
    """``left`` in the first room toggles a lamp, which texts show."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._lit = False
        return super().start(task_id, seed)

    def act(self, action: str) -> Outcome:
        if action == "left" and self._place == 0 and not self._over:
            self._lit = not self._lit
            return self._outcome(self._look())
        return super().act(action)

    def _look(self) -> str:
        return f"{super()._look()} The lamp is {'on' if self._lit else 'off'}."

    def admissible_actions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("left", *super().admissible_actions())))

    def state_key(self) -> Any:
        return super().state_key(), self._lit

    def save(self) -> Any:
        return super().save(), self._lit

    def load(self, token: Any) -> None:
        inner, self._lit = token
        super().load(inner)


class KeyWithoutLamp(Lamp):
    def state_key(self) -> Any:
        return super().state_key()[0]


class KeyRoundsPlace(Sound):
    """The last two rooms share a key."""

    def state_key(self) -> Any:
        return self._colour, min(self._place, self._length - 1), self._over


class KeyUnhashable(Sound):
    def state_key(self) -> Any:
        return [self._place] if self._place == 3 else super().state_key()


class LiveToken(Sound):
    """The token is the live state itself."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._box = [0]
        return super().start(task_id, seed)

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        self._box[0] = self._place
        return outcome

    def save(self) -> Any:
        return super().save(), self._box

    def load(self, token: Any) -> None:
        inner, self._box = token
        super().load(inner)
        self._place = self._box[0]


class WearsToken(Sound):
    """``load`` keeps the token and changes it later."""

    def save(self) -> Any:
        return list(super().save())

    def load(self, token: Any) -> None:
        super().load(token)
        self._token = token

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        if getattr(self, "_token", None):
            self._token[1] = self._place
        return outcome


class TokenRarelyPickles(Sound):
    def save(self) -> Any:
        return (*super().save(), (lambda: None) if self._place == 4 else None)

    def load(self, token: Any) -> None:
        super().load(token[:-1])


class ForgetsGoal(Sound):
    """The length of the corridor is not saved."""

    def load(self, token: Any) -> None:
        super().load((self._length, *token[1:]))


class AcceptsGibberish(Sound):
    def act(self, action: str) -> Outcome:
        return replace(super().act(action), valid=True)


class GibberishMoves(Sound):
    """What it does not understand takes the agent a room further."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        if not outcome.valid and not self._over and self._place < self._length - 1:
            self._place += 1
        return outcome


class GibberishMovesRarely(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        if not outcome.valid and not self._over and self._place == 3:
            self._place = 0
        return outcome


class WinnableDenied(Sound):
    """In the third room, where the expert wins."""

    def winnable(self) -> bool:
        return super().winnable() and self._place != 2


class WinnableWhenLost(Sound):
    def winnable(self) -> bool:
        return True


class Trap(Sound):
    """Going left from the third room blocks the door for good."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._blocked = False
        return super().start(task_id, seed)

    def act(self, action: str) -> Outcome:
        if action == "left" and self._place == 2:
            self._blocked = True
        if action == "open" and self._blocked and self._place == self._length and not self._over:
            return self._outcome("It is blocked.")
        return super().act(action)

    def state_key(self) -> Any:
        return super().state_key(), self._blocked

    def save(self) -> Any:
        return super().save(), self._blocked

    def load(self, token: Any) -> None:
        inner, self._blocked = token
        super().load(inner)

    def winnable(self) -> bool:
        return super().winnable() and not self._blocked

    def expert_action(self) -> str | None:
        return None if self._blocked else super().expert_action()


class TrapCalledWinnable(Trap):
    expert_reach = "start"

    def winnable(self) -> bool:
        return CorridorWorld.winnable(self)


class ExpertRarelyLoses(Lamp):
    """Jumps in the fifth room when the lamp is on."""

    def expert_action(self) -> str | None:
        return "jump" if self._lit and self._place == 4 else super().expert_action()


class ExpertRarelySilent(Lamp):
    """Has no action in the fifth room when the lamp is on, and says nothing about winning."""

    def winnable(self) -> None:
        return None

    def expert_action(self) -> str | None:
        return None if self._lit and self._place == 4 else super().expert_action()


class ExpertLosesATask(Sound):
    """In the longest corridor only."""

    def expert_action(self) -> str | None:
        return "jump" if self._length == 7 and not self._over else super().expert_action()


class TextsChangeLate(Sound):
    """After 150 starts."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._starts = getattr(self, "_starts", 0) + 1
        outcome = super().start(task_id, seed)
        return replace(outcome, observation=outcome.observation + (" Again." if self._starts > 150 else ""))


class TextsChangeAfterActs(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return replace(outcome, observation=outcome.observation + (" Tired." if self.num_acts > 400 else ""))


class GoalChanges(Sound):
    @property
    def goal(self) -> str:
        return super().goal if self._place < 3 else "go home"


class TypeChanges(Sound):
    @property
    def task_type(self) -> str:
        return "short" if self._place < 3 else "long"


class LostWithFullScore(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return replace(outcome, score=1.0) if outcome.over else outcome


class ScoreFalls(Sound):
    """The fourth room is worth less than the third."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return outcome if outcome.over else replace(outcome, score={2: 0.5, 3: 0.2}.get(self._place, 0.0))

    def start(self, task_id: str, seed: int) -> Outcome:
        return super().start(task_id, seed)


class ScoreIsNan(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return replace(outcome, score=math.nan) if self._place == 3 else outcome


class WonIsText(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return replace(outcome, won="no") if self._place == 3 and not outcome.over else outcome  # type: ignore[arg-type]


class RarelyNoText(Sound):
    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return replace(outcome, observation=None) if self._place == 4 else outcome  # type: ignore[arg-type]


class LeaksInAct(Sound):
    def act(self, action: str) -> Outcome:
        LEAK.append(bytearray(2000))
        return super().act(action)


class AskingChanges(Sound):
    """Asking what is possible changes the texts that follow."""

    def start(self, task_id: str, seed: int) -> Outcome:
        self._asked = 0
        return super().start(task_id, seed)

    def admissible_actions(self) -> tuple[str, ...]:
        self._asked += 1
        return super().admissible_actions()

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        return replace(outcome, observation=f"{outcome.observation} {self._asked}")


class RaisesLater(Sound):
    def act(self, action: str) -> Outcome:
        if action == "left" and self._place == 4:
            raise RuntimeError("no way back")
        return super().act(action)


class EmptySplit(Sound):
    def splits(self):
        return ("train", "empty")

    def task_ids(self, split: str):
        return () if split == "empty" else super().task_ids(split)


class NamesTaskTwice(Sound):
    def task_ids(self, split: str):
        return (*super().task_ids(split), "corridor-2")


FAULTS: list[tuple[type[CorridorWorld], str]] = [
    (DrawsOrder, "tasks"),
    (RaisesKeyError, "tasks"),
    (NoSaving, "restore"),
    (LosesExpert, "restore"),
    (CountsInKey, "restore"),
    (Overflows, "outcome"),
    (WonInTheMiddle, "outcome"),
    (UnreadableIsLost, "outcome"),
    (UnreadableIsLost, "hostile actions"),
    (Obeys, "hostile actions"),
    (LeaksUntilClosed, "flat memory"),
    (ListsTwice, "admissible"),
    (ExpertWavers, "expert"),
    (ExpertDawdles, "expert"),
    (SaysWinnable, "expert anywhere"),
    (NoVersion, "fingerprint"),
    (SharedTasks, "tasks"),
    (AnyTask, "tasks"),
    (Dice, "seed"),
    (Dice, "same actions"),
    (NoText, "gymnasium"),
    (Remembers, "same actions"),
    (ForgetsPlace, "restore"),
    (WonIsOver, "outcome"),
    (Restarts, "autoreset"),
    (Fragile, "hostile actions"),
    (Echo, "hostile actions"),
    (Prints, "no stdout"),
    (PrintsFromC, "no stdout"),
    (Dice, "global random"),
    (SeedsGlobally, "global random"),
    (LeaksMemory, "flat memory"),
    (LeaksHandles, "flat memory"),
    (ListsTooMuch, "admissible"),
    (ExpertJumps, "expert"),
    (ExpertFromStartOnly, "expert anywhere"),
    (ListsImpossible, "admissible"),
    (ListsTwiceLater, "admissible"),
    (ListsNothing, "admissible"),
    (KeyWithoutPlace, "state key"),
    (KeyWithoutLamp, "state key"),
    (KeyRoundsPlace, "state key"),
    (KeyUnhashable, "state key"),
    (LiveToken, "restore"),
    (WearsToken, "restore"),
    (TokenRarelyPickles, "restore"),
    (ForgetsGoal, "restore"),
    (AcceptsGibberish, "hostile actions"),
    (GibberishMoves, "hostile actions"),
    (GibberishMovesRarely, "hostile actions"),
    (WinnableDenied, "winnable"),
    (WinnableWhenLost, "winnable"),
    (TrapCalledWinnable, "winnable"),
    (ExpertRarelyLoses, "expert anywhere"),
    (ExpertRarelySilent, "expert anywhere"),
    (ExpertLosesATask, "expert"),
    (TextsChangeLate, "flat memory"),
    (TextsChangeAfterActs, "flat memory"),
    (GoalChanges, "outcome"),
    (TypeChanges, "outcome"),
    (LostWithFullScore, "outcome"),
    (ScoreFalls, "outcome"),
    (ScoreIsNan, "outcome"),
    (WonIsText, "outcome"),
    (RarelyNoText, "outcome"),
    (LeaksInAct, "flat memory"),
    (AskingChanges, "same actions"),
    (RaisesLater, "restore"),
    (EmptySplit, "tasks"),
    (NamesTaskTwice, "tasks"),
]
"""a world, and the check that must fail"""


def main() -> None:
    """Print, for each planted fault, whether its check failed and what it says."""
    caught = 0
    for world, check in FAULTS:
        report = check_text_env(partial(make, world), settings=CheckSettings(num_resets=200, new_process=False))
        failed = report[check].status == "failed"
        caught += failed
        print(
            f"{'caught' if failed else 'MISSED'}  {world.__name__:22} {check:16} {report[check].detail:.110}",
            flush=True,
        )
        while LEAK:
            getattr(LEAK.pop(), "close", lambda: None)()
    print(f"{caught} of {len(FAULTS)} caught")


if __name__ == "__main__":
    main()
