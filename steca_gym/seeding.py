"""Seeds derived from other seeds and names. They are equal in every process and on every machine."""

from __future__ import annotations

import hashlib
import zlib


def derive_seed(*parts: object) -> int:
    """Return the seed in [0, 2**32) that belongs to ``parts``, such as a run's seed, a task and an index.

    The parts are joined by "/", so at most one of them may contain a slash freely (task ids do).

    >>> derive_seed(0, "train/16", 1) == derive_seed("0", "train/16", "1")
    True
    """
    return zlib.crc32("/".join(map(str, parts)).encode("utf-8", "surrogatepass"))


def evaluation_seed(seed: int, task_id: str) -> int:
    """Return the seed of a task's evaluation episode.

    The agent's episode, the expert's reference episode and the stress test of a task all use it, so that they play
    the same game.
    """
    return derive_seed("evaluation", seed, task_id)


def repeat_seed(seed: int, task_id: str, index: int) -> int:
    """Seed of a sampled play of an evaluation's game beside the greedy one."""
    return derive_seed("evaluation-repeat", seed, task_id, index)


def derive_draw(*parts: object) -> int:
    """Return a number in [0, 2**31) that serves as an independent uniform draw for each distinct ``parts``.

    CRC-32 values of similar texts are related; use this where the value itself is compared or reduced to a choice.
    Parts may contain any character.
    """
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") & 0x7FFF_FFFF
