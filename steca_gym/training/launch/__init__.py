"""Configurations of `accelerate launch`: `ddp`, `fsdp2`, `deepspeed_zero2`, `deepspeed_zero3`.

  accelerate launch --config_file "$(python -m steca_gym.training.launch fsdp2)" --num_processes 8 train.py

Copy one to change it; `--num_processes`, `--num_machines` and the like go before the values in the file.
"""

from __future__ import annotations

from pathlib import Path

from steca_gym.errors import UnknownNameError
from steca_gym.registry import explain_unknown

_FOLDER = Path(__file__).parent


def launch_configs() -> tuple[str, ...]:
    """Names of the configurations."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


def launch_config(name: str) -> Path:
    """The file to give as ``accelerate launch --config_file``; raises UnknownNameError for another name."""
    if name not in launch_configs():
        raise UnknownNameError(explain_unknown("launch configuration", name, launch_configs()))
    return _FOLDER / f"{name}.yaml"
