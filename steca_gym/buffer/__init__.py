"""Durable storage of a run: trajectories, evidence, decisions and progress in one SQLite file."""

from steca_gym.buffer.decisions import Decision, Standing, verify_trail
from steca_gym.buffer.opening import Durability
from steca_gym.buffer.schema import SCHEMA_VERSION
from steca_gym.buffer.store import CalibrationBuffer

__all__ = ["SCHEMA_VERSION", "CalibrationBuffer", "Decision", "Durability", "Standing", "verify_trail"]
