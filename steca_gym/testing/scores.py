"""What a single step must agree with, whatever the world."""

from __future__ import annotations

from steca_gym.testing.play import CheckFailure, Seen


def check_step(seen: Seen, *, before: float, may_fall: bool) -> None:
    """Check one step's outcome; raises CheckFailure.

    Args:
        seen: the step.
        before: score before the step.
        may_fall: the world declares that its score can fall.
    """
    what = f"action {seen.action!r:.60}"
    for name in ("won", "valid"):
        if not isinstance(getattr(seen, name), bool):
            raise CheckFailure(f"{what}: {name} is {getattr(seen, name)!r:.40}, expected True or False")
    if not isinstance(seen.observation, str):
        raise CheckFailure(f"{what}: the observation is {seen.observation!r:.40}, expected text")
    if not 0.0 <= seen.score <= 1.0:
        raise CheckFailure(f"{what}: score {seen.score} is outside [0, 1]")
    if abs(before + seen.reward - seen.score) > 1e-6:
        raise CheckFailure(f"{what}: rewards add up to {before + seen.reward}, score is {seen.score}")
    if seen.won and not (seen.terminated or seen.action is None):
        raise CheckFailure(f"{what}: won, but the episode continues")
    if seen.won and seen.score < 1.0:
        raise CheckFailure(f"{what}: won with score {seen.score}: a lost or open end is reported as won")
    if seen.terminated and not seen.won and seen.score >= 1.0:
        raise CheckFailure(f"{what}: the episode ends lost with score {seen.score}; expected less than 1")
    if seen.score < before - 1e-9 and not (seen.terminated or may_fall):
        raise CheckFailure(
            f"{what}: the score falls from {before} to {seen.score}; a world whose score can fall declares "
            "score_may_fall = True"
        )
