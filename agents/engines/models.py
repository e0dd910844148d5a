# pyright: reportCallIssue=false, reportArgumentType=false
# (transformers generates call signatures that pyright cannot see)
"""Causal language models for rollouts: loading them, and what engines need to know about them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steca_gym.chat import ChatCodec, codec_of
from steca_gym.errors import CheckpointError, ConfigError

_LOG = logging.getLogger(__name__)
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_WORTH = 1.15
"""dtype=auto takes bfloat16 if it is faster than float32 by this factor"""
_UNLIMITED = 1 << 30
MAX_CHECK_TOKENS = 1024
"""rows of a check are at most about this long"""


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer in a model's folder; raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for unusable folders
        raise CheckpointError(_cannot("tokenizer", model, error)) from error


def check_dtype(dtype: str) -> None:
    """Raise ConfigError for a number type that models are not loaded in."""
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")


def load_model(model: str | Path, dtype: str, device: str | None) -> tuple[Any, str]:
    """A causal language model in evaluation mode on its device, and how its number type was chosen.

    Raises:
        CheckpointError: the folder or name gives no causal language model.
        ConfigError: an unknown dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from steca_gym.training.quiet import quiet_transformers

    check_dtype(dtype)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def read(number: str) -> Any:
        # Always from the files: ``model.to(bfloat16)`` would round the rotary frequencies too, which must stay float32.
        try:
            with quiet_transformers():
                loaded = AutoModelForCausalLM.from_pretrained(
                    str(model), dtype=getattr(torch, number), trust_remote_code=False
                )
        except Exception as error:
            raise CheckpointError(_cannot("causal language model", model, error)) from error
        return loaded.eval().to(place)

    if dtype != "auto":
        return read(dtype), f"{dtype}, as set"
    if place.type != "cpu":
        return read("bfloat16"), "bfloat16, the default of dtype=auto on accelerators"
    return _faster({name: read(name) for name in ("float32", "bfloat16")})


def _faster(models: dict[str, Any]) -> tuple[Any, str]:
    """The model in float32 or bfloat16, whichever is faster on this machine at this moment."""
    import torch

    runs: dict[str, list[float]] = {name: [] for name in models}
    # Alternate, and take the fastest of several runs: other processes should not decide.
    for attempt in range(6):
        for name, candidate in models.items():
            ids = torch.arange(64).reshape(64, 1) % int(candidate.get_input_embeddings().weight.shape[0])
            with torch.inference_mode():
                before = time.perf_counter()
                candidate(ids)
                candidate(ids.reshape(1, 64))
            if attempt:  # the first run includes set-up
                runs[name].append(time.perf_counter() - before)
    seconds = {name: min(found) for name, found in runs.items()}
    gain = seconds["float32"] / seconds["bfloat16"]
    how = f"bfloat16 runs at {gain:.2f} times the speed of float32 here; not reproducible, name a dtype for results"
    if gain >= _WORTH:
        return models["bfloat16"], f"bfloat16, measured: {how}"
    return models["float32"], f"float32, measured: {how}"


def load_codec(tokenizer: Any, model: str | Path | None) -> ChatCodec:
    """The chat codec of a tokenizer; raises CheckpointError if it has no usable chat template."""
    return codec_of(tokenizer, name="" if model is None else str(model))


def _cannot(what: str, model: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    folder = Path(model)
    if not folder.exists():
        return f"no {what} at {str(model)!r}: no such folder, and no model of that name in the local cache ({reason})"
    return f"cannot load a {what} from {str(model)!r}: expected a folder made by save_pretrained ({reason})"


def base_model(model: Any) -> Any | None:
    """The transformers model inside a PEFT model, else the model itself; None if PEFT changes its prompt."""
    if not hasattr(model, "peft_config") or not hasattr(model, "get_base_model"):
        return model
    if any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values()):
        return None
    return model.get_base_model()


def text_config(model: Any) -> Any:
    """The configuration of a model's language part."""
    return model.config.get_text_config()


def num_embeddings(model: Any) -> int:
    """Rows of the input embeddings: token ids must be smaller."""
    return int(model.get_input_embeddings().weight.shape[0])


def max_positions(model: Any) -> int:
    """The longest row that a model was made for, in tokens; about 1e9 if its configuration does not say."""
    config = text_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            rope = getattr(config, "rope_parameters", None) or {}
            # Dynamic scaling is made for rows that are longer than those of the training.
            factor = rope.get("factor") if rope.get("rope_type") == "dynamic" else None
            return int(value * max(float(factor or 1.0), 1.0))
    return _UNLIMITED


def stop_ids(model: Any, codec: ChatCodec) -> frozenset[int]:
    """Ids that end a turn: those of the chat template and tokenizer, and those of the model's generation settings."""
    settings = getattr(model, "generation_config", None)
    own = codec.stop_ids_with(settings) - codec.stop_ids
    special = set(codec.tokenizer.all_special_ids) | set(getattr(codec.tokenizer, "added_tokens_decoder", {}))
    for token in sorted(own - special):
        if token < num_embeddings(model):
            _LOG.warning(
                "the model's generation_config ends turns at id %d (%r), which the tokenizer does not list as special; "
                "set generation_config.eos_token_id if that is wrong",
                token,
                codec.tokenizer.decode([token]),
            )
    return codec.stop_ids | own


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Switch dropout off inside the block; a model that is being trained gets its modes back afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reset_positions(model: Any) -> None:
    """Undo what earlier rows did to rotary positions of type "dynamic", which keep the longest length they saw."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
            module.register_buffer("inv_freq", module.original_inv_freq.to(module.inv_freq.device), persistent=False)
            module.max_seq_len_cached = module.original_max_seq_len


def num_check_tokens(model: Any) -> int:
    """How long a row has to be so that a comparison of logits shows every length that the configuration names.

    A window or a chunk shows only in rows that are longer than it.
    """
    lengths = [
        value
        for name, value in text_config(model).to_dict().items()
        if ("window" in name or "chunk" in name) and isinstance(value, int) and not isinstance(value, bool)
        if name != "max_window_layers"
    ]
    return max([37, *(length + 24 for length in lengths if length <= MAX_CHECK_TOKENS)])


def length_dependent(model: Any) -> bool:
    """Whether a model's rotary positions depend on the longest row of a batch, or on rows that were read before."""
    configs = (model.config, text_config(model))
    found = [
        t for c in configs for name in ("rope_parameters", "rope_scaling") for t in rope_types(getattr(c, name, None))
    ]
    return any(rope == "longrope" or "dynamic" in rope for rope in found)


def rope_types(parameters: Any) -> Iterator[str]:
    """Types named anywhere in a model's rotary parameters, which may be given by layer type."""
    if not isinstance(parameters, dict):
        return
    for name, value in parameters.items():
        if name in ("rope_type", "type") and isinstance(value, str):
            yield value
        else:
            yield from rope_types(value)
