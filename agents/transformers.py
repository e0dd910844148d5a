"""Any causal language model that transformers can load, as an agent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steca_gym.agent import TurnRequest
from steca_gym.errors import ConfigError

from .engine_agent import EngineAgent
from .engines.models import check_dtype, load_codec, load_model, load_tokenizer, stop_ids
from .engines.selection import EngineName, check_engine_settings, select_engine

_LOG = logging.getLogger(__name__)


class TransformersAgent(EngineAgent):
    """A causal language model by name, by folder, or as a live model.

    A live model is shared, not copied: a trainer may change its weights between turns. Changes by an optimizer or by
    ``load_state_dict`` are noticed at the next turn; after any other change, call ``weights_changed()``. The model acts
    in evaluation mode (no dropout) and gets its mode back after each call.

    With the block engine, turns come back one by one (``submit``, ``poll``), histories are not read again, and forks
    share their common prefix.

    Args:
        model: a folder or name for ``from_pretrained``, or a live model (then ``tokenizer`` is required).
        tokenizer: a tokenizer with a chat template; by default the one in the model's folder.
        dtype: "float32", "bfloat16", "float16", or "auto": whichever of float32 and bfloat16 is faster on this machine.
            What "auto" takes is measured, so two runs of one command may differ: name a type where results matter. A
            live model keeps its own type.
        device: where to run; by default a GPU if there is one, else the CPU. A live model stays where it is.
        max_batch_size: rows that are decoded at once, >= 1.
        kv_cache_gib: largest memory for keys and values, in GiB, > 0.
        engine: "blocks" (continuous batching over a block cache), "generate" (one ``generate()`` call per batch of
            turns), or "auto": blocks if the model is known to be computed exactly, else generate. The choice and its
            reason are logged and kept in ``engine_line``.
        name: what trajectories call the agent; by default the folder's name.

    Raises:
        CheckpointError: no usable model, or a tokenizer without a usable chat template.
        ConfigError: settings that cannot work.
    """

    @staticmethod
    def check_settings(
        *,
        dtype: str = "float32",
        max_batch_size: int = 64,
        kv_cache_gib: float = 4.0,
        engine: str = "auto",
        **others: Any,
    ) -> None:
        """Raise ConfigError for settings that cannot work, before a model is there."""
        check_dtype(dtype)
        check_engine_settings(engine, max_batch_size=max_batch_size, kv_cache_gib=kv_cache_gib)

    def __init__(
        self,
        model: str | Path | Any,
        *,
        tokenizer: Any = None,
        dtype: str = "float32",
        device: str | None = None,
        max_batch_size: int = 64,
        kv_cache_gib: float = 4.0,
        engine: EngineName = "auto",
        name: str | None = None,
    ) -> None:
        """See the class."""
        path = model if isinstance(model, str | Path) else None
        if tokenizer is None:
            if path is None:
                raise ConfigError("a live model was given without its tokenizer; pass tokenizer=...")
            tokenizer = load_tokenizer(path)
        codec = load_codec(tokenizer, path)
        self.model: Any = model
        chosen = f"{self.dtype}, its own"
        if path is not None:
            self.model, chosen = load_model(path, dtype, device)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else codec.end_ids[-1]
        selected, why = select_engine(
            engine,
            self.model,
            stop_ids=stop_ids(self.model, codec),
            pad_id=int(pad),
            max_batch_size=max_batch_size,
            kv_cache_gib=kv_cache_gib,
        )
        super().__init__(
            selected, codec, name=name or (Path(path).name if path is not None else type(self.model).__name__)
        )
        self.engine_line = f"{self.name}: {selected.name} ({why}); {chosen}"
        """one line: which engine, which number type, and why"""
        _LOG.info(self.engine_line)
        self._weights = self._weights_version()

    @property
    def dtype(self) -> str:
        """The number type that the model computes in, such as "float32"; empty if a live model does not say."""
        return str(getattr(self.model, "dtype", "")).removeprefix("torch.")

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Accept requests; at most one per episode may be in progress."""
        if not self._asked and self._weights_version() != self._weights:
            self.weights_changed()
        super().submit(requests)

    def weights_changed(self) -> None:
        """Drop everything that was computed with the model's old weights.

        Turns in progress continue with the new weights; turns that are submitted afterwards equal those of a new agent.
        """
        super().weights_changed()
        self._weights = self._weights_version()

    def _weights_version(self) -> int:
        """A number that changes with the weights; torch counts changes in place, but not those through ``.data``."""
        parameters = [p for p in self.model.parameters() if not p.is_inference()]
        return hash(tuple((p._version, p.data_ptr()) for p in parameters))
