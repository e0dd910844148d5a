"""A model in vLLM, in this process, as an agent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steca_gym.errors import CheckpointError, ConfigError

from .engine_agent import EngineAgent
from .engines.models import load_codec, load_tokenizer
from .engines.vllm import VLLMEngine, make_llm_engine

_OURS = ("model", "tokenizer", "dtype", "max_num_seqs", "max_model_len", "gpu_memory_utilization", "seed")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


class VLLMAgent(EngineAgent):
    """A model folder, or a name in the local cache, served by vLLM in this process.

    A run makes a new agent from each model that it trains, so rounds need no swap of weights. The memory that vLLM
    takes is given back when the agent is closed or collected.

    Args:
        model: a folder or name for vLLM.
        dtype: "float32", "bfloat16", "float16", or "auto": the type that the weights are stored in.
        max_batch_size: rows that are decoded at once (``max_num_seqs``), >= 1.
        max_length: tokens that a row may have (``max_model_len``); None: as many as the model can.
        gpu_memory_utilization: part of the GPU's memory that vLLM takes, in (0, 1]. Leave room for the trainer where
            both share a GPU.
        engine_args: further arguments of ``vllm.EngineArgs``, e.g. ``tensor_parallel_size`` or ``enforce_eager``.
        engine: a ``vllm.LLMEngine`` that is there already; the arguments above are then its own business.
        name: what trajectories call the agent; by default the folder's name.

    Raises:
        CheckpointError: no usable model, or a tokenizer without a usable chat template.
        ConfigError: vLLM is not installed, or settings that cannot work.
        AgentError: vLLM cannot start.
    """

    @staticmethod
    def check_settings(
        *,
        dtype: str = "auto",
        max_batch_size: int = 256,
        max_length: int | None = None,
        gpu_memory_utilization: float = 0.9,
        engine_args: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Raise ConfigError for settings that cannot work, before a model is there."""
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size must be >= 1 row, got {max_batch_size}")
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length must be >= 2 tokens or null, got {max_length}")
        if not 0 < gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must lie in (0, 1], got {gpu_memory_utilization}")
        twice = sorted(set(engine_args or {}) & set(_OURS))
        if twice:
            raise ConfigError(f"engine_args names {', '.join(twice)}, which have settings of their own here")
        if (engine_args or {}).get("trust_remote_code"):
            raise ConfigError("trust_remote_code runs code from the model's folder and is off everywhere")

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        max_batch_size: int = 256,
        max_length: int | None = None,
        gpu_memory_utilization: float = 0.9,
        engine_args: Mapping[str, Any] | None = None,
        engine: Any = None,
        name: str | None = None,
    ) -> None:
        """See the class."""
        self.check_settings(
            dtype=dtype,
            max_batch_size=max_batch_size,
            max_length=max_length,
            gpu_memory_utilization=gpu_memory_utilization,
            engine_args=engine_args,
        )
        codec = load_codec(load_tokenizer(model), model)
        settings, vocabulary, positions = _model_settings(model)
        if engine is None:
            arguments = {
                "model": str(model),
                "dtype": dtype,
                "max_num_seqs": max_batch_size,
                "max_model_len": max_length,
                "gpu_memory_utilization": gpu_memory_utilization,
                "seed": 0,
                "enable_prefix_caching": True,
                **(engine_args or {}),
            }
            engine = make_llm_engine(arguments)
        super().__init__(
            VLLMEngine(
                engine,
                stop_ids=codec.stop_ids_with(settings),
                vocabulary=vocabulary,
                max_tokens=max_length or positions,
            ),
            codec,
            name=name or Path(model).name,
        )

    def close(self) -> None:
        """Give the memory back; the agent cannot be used afterwards."""
        self.forget()
        shutdown = getattr(getattr(self.engine.engine, "engine_core", None), "shutdown", None)  # type: ignore[attr-defined]
        if callable(shutdown):
            shutdown()


def _model_settings(model: str | Path) -> tuple[Any, int, int]:
    """Generation settings (or None), rows of the embeddings, and positions of a model."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(str(model), trust_remote_code=False).get_text_config()
    except Exception as error:  # OSError, ValueError, KeyError and more for unusable folders
        raise CheckpointError(
            f"no model that transformers can describe at {str(model)!r}: {' '.join(str(error).split())[:200]}"
        ) from error
    try:
        settings = GenerationConfig.from_pretrained(str(model))
    except Exception:  # the file is optional
        settings = None
    return settings, int(config.vocab_size), int(getattr(config, "max_position_embeddings", 1 << 30))
