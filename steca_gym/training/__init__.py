"""Training of language-model agents on weighted trajectories, over TRL.

``import steca_gym.training`` loads no torch: ``train`` imports what it needs when it is called.
"""

from steca_gym.training.settings import TrainReport, TrainSettings, reinforced_settings, warm_up_settings
from steca_gym.training.train import train

__all__ = ["TrainReport", "TrainSettings", "reinforced_settings", "train", "warm_up_settings"]
