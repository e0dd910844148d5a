"""Trackers: where a run's metrics, tables, charts and artifacts go.

JSON lines, Weights & Biases, trackio, TensorBoard, several at once, or one of your own. A tracker that fails or hangs
while a run is under way never stops it: it is warned about once. A tracker of your own is a class with the methods of
``Tracker``. Its ``__init__`` takes its settings as keywords, and where it has such parameters also ``folder`` (the
run's), ``settings`` (the composed configuration) and ``sweep`` (name of the sweep, or empty). With a parameter
``timeout_s`` its calls are given up after so many seconds::

    steca run logger=my_module:MyTracker logger.key=value
    steca run logger=[wandb,tensorboard] logger.wandb.mode=online
"""

from steca_gym.tracking.base import Artifact, Chart, Tracker
from steca_gym.tracking.guard import CompositeTracker, SafeTracker
from steca_gym.tracking.jsonl import JsonlTracker
from steca_gym.tracking.making import check_tracker, make_tracker, results_are_awaited

__all__ = [
    "Artifact",
    "Chart",
    "CompositeTracker",
    "JsonlTracker",
    "SafeTracker",
    "Tracker",
    "check_tracker",
    "make_tracker",
    "results_are_awaited",
]
