# ruff: noqa: TID251 - ruff takes relative imports in this folder for the banned top-level name
"""Causal language models as agents: loading, drawing tokens, and engines that decode many at once."""

from .agent import TransformersAgent

__all__ = ["TransformersAgent"]
