"""Hydra configuration groups, composed by ``steca``."""
