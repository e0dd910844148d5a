"""`steca fetch NAME`: import a world's data into a compact cache.

steca fetch virtualhome
"""

from __future__ import annotations

from steca_gym.cli.options import read_options
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.registry import fetchers

    _, names = read_options("fetch", args, {}, positional=True)
    if len(names) != 1:
        raise ConfigError(f"steca fetch takes the name of one world, got {len(names)}; e.g. steca fetch virtualhome")
    print(fetchers.get(names[0])())
    return 0
