"""The guard of an evaluation: games that fed training, by their ids and by their content, are not evaluated on.

Also keeps the types of tasks apart that an evaluation holds out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from steca_gym.env import TextEnv, World, content_digest
from steca_gym.errors import ContaminationError, DataError
from steca_gym.trajectory import Trajectory


def listed_twins(
    make_env: Callable[[str], TextEnv], train: tuple[str, Sequence[str]], games: tuple[str, Sequence[str]]
) -> list[str] | None:
    """Games that read and are solved like a training task under another id, known before anything is played.

    Args:
        make_env: makes an environment of a split.
        train: the split and the tasks of training.
        games: the split and the games of the evaluation.

    Returns:
        The games; None for worlds that cannot tell without playing (``World.content_key`` is not theirs).
    """
    with contextlib.closing(make_env(train[0])) as env:
        if type(env.world).content_key is World.content_key:
            return None
        known = {env.content_key(task_id) for task_id in train[1]}
    with contextlib.closing(make_env(games[0])) as env:
        return [task_id for task_id in games[1] if env.content_key(task_id) in known]


def played_twins(train: Sequence[Trajectory], games: Sequence[Trajectory]) -> list[str]:
    """The same from what the expert played: equal first observations, solved by equal actions."""
    known = {_content(t) for t in train}
    return [t.task_id for t in games if _content(t) in known]


def _content(trajectory: Trajectory) -> str:
    return content_digest([trajectory.first_observation, *trajectory.actions])


def refuse_twins(twins: Sequence[str], num_games: int) -> None:
    """Raise ContaminationError where there are twins."""
    if twins:
        raise ContaminationError(
            f"{len(twins)} of {num_games} games read and are solved like a training task (first: {twins[0]!r}); "
            "evaluate on another split, or set env.twins=report to evaluate on them and have them counted"
        )


def tasks_of_types(
    env: TextEnv, task_ids: Sequence[str], limit: int, types: Sequence[str], *, wanted: bool
) -> list[str]:
    """The first tasks whose type is, or is not, among these; begins each to learn its type.

    Args:
        env: an environment of the tasks' split; it is closed.
        task_ids: the tasks, in order.
        limit: most tasks that are returned.
        types: the types.
        wanted: tasks of these types; False: of all others.

    Raises:
        DataError: there is none.
    """
    known, found = set[str](), list[str]()
    with contextlib.closing(env):
        for task_id in task_ids:
            _, info = env.reset(seed=0, options={"task_id": task_id})
            known.add(info["task_type"])
            if (info["task_type"] in types) == wanted:
                found.append(task_id)
            if len(found) == limit:
                break
    if not found:
        raise DataError(
            f"split {env.split!r} has no task {'of' if wanted else 'beside'} the types {', '.join(types)} of "
            f"env.held_out_types; its types: {', '.join(sorted(map(repr, known)))}"
        )
    return found
