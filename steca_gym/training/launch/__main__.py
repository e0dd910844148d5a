"""Print the path of a configuration."""

from __future__ import annotations

import sys

from steca_gym.errors import StecaError
from steca_gym.training.launch import __doc__ as usage
from steca_gym.training.launch import launch_config


def main(args: list[str]) -> int:
    """Run the command."""
    if len(args) != 1 or args[0] in ("-h", "--help"):
        print(usage)
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        print(launch_config(args[0]))
    except StecaError as error:
        print(f"steca: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
