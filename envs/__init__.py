"""Concrete worlds; importing this package registers them with Gymnasium.

``import steca_gym.envs`` or ``gymnasium.make("steca_gym.envs:steca/Household-v0")`` both register.
"""

import gymnasium

from steca_gym.registry import fetchers


def _register(env_id: str, entry_point: str) -> None:
    # max_episode_steps stays unset: TextEnv counts its own horizon, so that snapshots hold the count.
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point=f"steca_gym.envs.{entry_point}", order_enforce=False)


_register("steca/ALFWorld-v0", "alfworld:make_alfworld")
_register("steca/Household-v0", "alfworld:make_household")
_register("steca/BabyAI-v0", "babyai:make_babyai")
_register("steca/TextWorld-v0", "textworld:make_textworld")
_register("steca/ScienceWorld-v0", "scienceworld:make_scienceworld")
_register("steca/VirtualHome-v0", "virtualhome:make_virtualhome")
_register("steca/SupportDesk-v0", "support:make_support_desk")
_register("steca/Gymnasium-v0", "adapters:make_gymnasium")
_register("steca/OpenEnv-v0", "adapters:make_openenv")

fetchers.register("virtualhome", "steca_gym.envs.virtualhome:fetch")
