"""The panel of an evaluation: which games are played, by which rules. Games that fed training are refused.

A ``Panel`` names its games by content: the same file on another machine means the same games, or it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steca_gym.env import TextEnv, World, content_digest
from steca_gym.errors import ConfigError, ContaminationError, DataError
from steca_gym.files import write_json
from steca_gym.seeding import evaluation_seed

PANEL_VERSION = 1

LOCATION_SETTINGS = frozenset({"data", "cache"})
"""settings of a world that say where its files lie, and so differ between machines; they are no rules of the game"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelGame:
    """One game."""

    task_id: str
    content: str
    """digest of what an agent reads at the start and, where the world can tell without playing, of the solution"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The games of an evaluation in their order, each played once, and the rules that they are played by."""

    world: str
    """``name/version`` of the world"""
    env_id: str
    """Gymnasium id"""
    rules: Mapping[str, Any]
    """settings of the environment: ``horizon`` (the step cap), ``list_actions``, sizes of generated games, ..."""
    split: str
    prompt: str
    """digest of the instruction and the worked example that stand before every game"""
    seed: int
    """of the episodes"""
    games: tuple[PanelGame, ...]
    name: str = ""
    """for people; not part of the key"""

    @property
    def key(self) -> str:
        """Digest of everything but the name: equal for equal panels."""
        plain = asdict(self)
        del plain["name"]
        return content_digest([json.dumps(plain, sort_keys=True, default=str)])

    @property
    def task_ids(self) -> list[str]:
        """The games, in order."""
        return [g.task_id for g in self.games]

    def write(self, path: Path) -> None:
        """Write the panel as JSON; ``read_panel`` reads it."""
        write_json(path, {"steca_panel": PANEL_VERSION, "key": self.key, **asdict(self)})


def read_panel(path: Path) -> Panel:
    """Read a panel; raises DataError with what is wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("steca_panel") != PANEL_VERSION:
            raise DataError(f'it has no "steca_panel": {PANEL_VERSION}')
        del raw["steca_panel"]
        key = raw.pop("key")
        panel = Panel(**{**raw, "games": tuple(PanelGame(**g) for g in raw["games"])})
        if not panel.games:
            raise DataError("it holds no games")
        if not all(isinstance(g.task_id, str) and isinstance(g.content, str) for g in panel.games):
            raise DataError("each game needs a task_id and a content, both texts")
        if isinstance(panel.seed, bool) or not isinstance(panel.seed, int) or not isinstance(panel.rules, dict):
            raise DataError("seed must be a number, and rules an object")
        if panel.key != key:
            raise DataError("its key does not fit its content: the file was changed after it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(
            f"cannot read the panel {str(path)!r}: {error}; expected the panel.json that steca evaluate writes"
        ) from error
    return panel


def make_panel(
    env: TextEnv,
    task_ids: Sequence[str],
    *,
    env_id: str,
    kwargs: Mapping[str, Any],
    split: str,
    prompt: str,
    seed: int,
    name: str = "",
) -> Panel:
    """The panel of these games.

    Args:
        env: an environment of the split; it is reset once for each game.
        task_ids: the games, in order.
        env_id: Gymnasium id.
        kwargs: settings of the environment; those of ``LOCATION_SETTINGS`` are left out.
        split: of the games.
        prompt: digest of what stands before every game.
        seed: of the episodes.
        name: for people.
    """
    rules = {key: value for key, value in kwargs.items() if key not in LOCATION_SETTINGS}
    return Panel(
        world=f"{env.world.name}/{env.world.version}",
        env_id=env_id,
        rules=json.loads(json.dumps(rules, default=str)),
        split=split,
        prompt=prompt,
        seed=seed,
        games=tuple(PanelGame(task_id=t, content=_content(env, t, seed)) for t in task_ids),
        name=name,
    )


def _content(env: TextEnv, task_id: str, seed: int) -> str:
    first, _ = env.reset(seed=evaluation_seed(seed, task_id), options={"task_id": task_id})
    told = "" if type(env.world).content_key is World.content_key else env.content_key(task_id)
    return content_digest([first, told])


def check_panel(panel: Panel, here: Panel) -> None:
    """Raise unless a panel, made again from what is here, is the same.

    Args:
        panel: as it was read from a file.
        here: made by ``make_panel`` of the file's games in this run's environment.

    Raises:
        ConfigError: other rules; the message says which, and what to set.
        DataError: a game with another content.
    """
    rules = {**{f"env.kwargs.{k}": v for k, v in panel.rules.items()}, "env.id": panel.env_id}
    ours = {**{f"env.kwargs.{k}": v for k, v in here.rules.items()}, "env.id": here.env_id}
    differing = [k for k in sorted({*rules, *ours}) if rules.get(k) != ours.get(k)]
    if differing:
        k = differing[0]
        more = f" (and {len(differing) - 1} more: {', '.join(differing[1:4])})" if len(differing) > 1 else ""
        advice = f"set {k}={json.dumps(rules[k])}" if k in rules else f"leave out {k}"
        raise ConfigError(
            f"the panel was made with {k}={json.dumps(rules.get(k))}, this run has {json.dumps(ours.get(k))}{more}; "
            f"{advice}"
        )
    for what, expected, got in (("the world", panel.world, here.world), ("the prompt", panel.prompt, here.prompt)):
        if expected != got:
            raise ConfigError(f"the panel was made with {what} {expected}, this run has {got}; figures do not compare")
    changed = [a.task_id for a, b in zip(panel.games, here.games, strict=True) if a.content != b.content]
    if changed:
        raise DataError(
            f"{len(changed)} of {len(panel.games)} games of the panel are other games here (first: {changed[0]!r}); "
            "use the data that the panel was made with"
        )


def check_world(panel: Panel, env_id: str) -> None:
    """Raise ConfigError where a panel's games are of another world than ``env_id``."""
    if panel.env_id != env_id:
        raise ConfigError(
            f"the panel's games are of {panel.env_id!r}, this run plays {env_id!r}; choose the panel's world"
        )


def check_games(task_ids: Sequence[str], forbidden_task_ids: Collection[str] = ()) -> None:
    """Check the games of an evaluation.

    Raises:
        ConfigError: no games, or a game twice.
        ContaminationError: a game is among the forbidden ones.
    """
    if not task_ids:
        raise ConfigError("nothing to evaluate: expected at least one game, got an empty list; check the split")
    if len(set(task_ids)) != len(task_ids):
        raise ConfigError(f"{len(task_ids) - len(set(task_ids))} games are listed twice; each may be played once")
    refuse_tainted(task_ids, forbidden_task_ids)


def refuse_tainted(task_ids: Sequence[str], forbidden_task_ids: Collection[str]) -> None:
    """Raise ContaminationError if a game is among those that fed training or calibration."""
    tainted = sorted(set(task_ids) & set(forbidden_task_ids))
    if tainted:
        raise ContaminationError(
            f"{len(tainted)} of {len(task_ids)} games fed training or calibration (first: {tainted[0]!r}); "
            "evaluate on another split"
        )
