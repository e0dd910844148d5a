"""Playing episodes: requests in, finished episodes out, and what it cost."""

from steca_gym.collectors.collector import Collector, Progress
from steca_gym.collectors.episodes import Episode, EpisodeRequest, EpisodeSource, Fork
from steca_gym.collectors.executors import Executor, InProcess
from steca_gym.collectors.ledger import Cost, Ledger
from steca_gym.collectors.processes import Processes

__all__ = [
    "Collector",
    "Cost",
    "Episode",
    "EpisodeRequest",
    "EpisodeSource",
    "Executor",
    "Fork",
    "InProcess",
    "Ledger",
    "Processes",
    "Progress",
]
