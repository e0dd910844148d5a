"""Models and tokenizers from a name or a folder. Knows what a rollout asks of them; knows no episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steca_gym.chat import ChatCodec, codec_of
from steca_gym.errors import CheckpointError, ConfigError

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer beside a model; raises CheckpointError with one line."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model))
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, KeyError and more for unusable folders
        raise CheckpointError(_cannot("tokenizer", model, error)) from error


def load_model(model: str | Path, dtype: str) -> Any:
    """A causal language model in evaluation mode; ``dtype`` "auto" loads float32 here.

    Raises:
        CheckpointError: the folder or name gives no causal language model.
        ConfigError: an unknown dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=wanted)
    except Exception as error:
        raise CheckpointError(_cannot("causal language model", model, error)) from error
    return loaded.eval()


def load_codec(tokenizer: Any, model: str | Path | None) -> ChatCodec:
    """The chat code of a tokenizer; raises CheckpointError without a usable chat template."""
    return codec_of(tokenizer, name="" if model is None else str(model))


def _cannot(what: str, model: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    folder = Path(model)
    if not folder.exists():
        return f"no {what} at {str(model)!r}: no such folder, and no model of that name at hand ({reason})"
    return f"cannot load a {what} from {str(model)!r}: expected a folder made by save_pretrained ({reason})"
