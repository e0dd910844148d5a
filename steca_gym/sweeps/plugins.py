"""The sweepers and launchers of ours, as Hydra plugins.

Hydra takes plugins by names below ``hydra_plugins`` only. Ours are registered under such names and live here.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

PLUGIN_MODULE = "hydra_plugins.steca_gym"
"""the name under which ``conf/hydra`` refers to the plugins"""


def register() -> None:
    """Make ``hydra/sweeper=steca|optuna`` and ``hydra/launcher=ray`` known to Hydra; may be called again."""
    from hydra.core.plugins import Plugins

    from steca_gym.sweeps.optuna_sweeper import OptunaSweeper
    from steca_gym.sweeps.ray_launcher import RayLauncher
    from steca_gym.sweeps.sweeper import Sweeper

    module = _module(PLUGIN_MODULE)
    for plugin in (Sweeper, OptunaSweeper, RayLauncher):
        plugin.__module__ = PLUGIN_MODULE
        setattr(module, plugin.__name__, plugin)
        Plugins.instance().register(plugin)


def _module(name: str) -> ModuleType:
    """A module of this process alone: with files below ``hydra_plugins``, Hydra would import them at every start."""
    parent = name.partition(".")[0]
    if parent not in sys.modules and find_spec(parent) is None:  # no other plugin is installed, and not called before
        sys.modules[parent] = ModuleType(parent)
        sys.modules[parent].__path__ = []
    return sys.modules.setdefault(name, ModuleType(name))


_NEEDS = {
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "hydra/launcher=ray": ("ray", "ray"),
    **dict.fromkeys(
        (f"hydra/launcher={name}" for name in ("submitit", "submitit_local", "submitit_slurm")),
        ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    ),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}
"""override: the module that it needs, and the extra that brings it"""


def missing_extra(override: str) -> str | None:
    """The extra that a choice of ``hydra/launcher`` or ``hydra/sweeper`` lacks here; None where all is there."""
    if override not in _NEEDS:
        return None
    module, extra = _NEEDS[override]
    try:
        return extra if find_spec(module) is None else None
    except ModuleNotFoundError:  # not even the namespace of Hydra's plugins
        return extra
