# pyright: reportCallIssue=false, reportArgumentType=false
# (numba and transformers generate call signatures that pyright cannot see)
"""Models and tokenizers from a name or a folder, and the number type that suits the machine.

Knows what a rollout asks of a model. Knows no episodes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from steca_gym.chat import ChatCodec, codec_of
from steca_gym.errors import CheckpointError, ConfigError

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_WORTH = 1.15
"""bfloat16 is taken when it is faster than float32 by this factor"""


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer beside a model; raises CheckpointError with one line."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for unusable folders
        raise CheckpointError(_cannot("tokenizer", model, error)) from error


def load_model(model: str | Path, dtype: str, device: str | None) -> tuple[Any, str]:
    """A causal language model in evaluation mode on its device, and a word on how its dtype was chosen.

    Raises:
        CheckpointError: the folder or name gives no causal language model.
        ConfigError: an unknown dtype.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def read(number: str) -> Any:
        # Always from the files: ``model.to(bfloat16)`` would round the rotary frequencies too, which must stay float32.
        try:
            loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, number))
        except Exception as error:
            raise CheckpointError(_cannot("causal language model", model, error)) from error
        return loaded.eval().to(place)

    if dtype != "auto":
        return read(dtype), f"{dtype}, as asked for"
    if place.type != "cpu":
        return read("bfloat16"), "bfloat16, as usual on accelerators"
    return _faster({name: read(name) for name in ("float32", "bfloat16")})


def _faster(models: dict[str, Any]) -> tuple[Any, str]:
    """The model in float32 or bfloat16, whichever reads and decodes faster here."""
    import torch

    runs: dict[str, list[float]] = {name: [] for name in models}
    # By turns, and the fastest of several: what else runs on the machine should not decide.
    for attempt in range(6):
        for name, candidate in models.items():
            ids = torch.arange(64).reshape(64, 1) % int(candidate.get_input_embeddings().weight.shape[0])
            with torch.inference_mode():
                before = time.perf_counter()
                candidate(ids)
                candidate(ids.reshape(1, 64))
            if attempt:  # the first one pays for set-up
                runs[name].append(time.perf_counter() - before)
    seconds = {name: min(found) for name, found in runs.items()}
    gain = seconds["float32"] / seconds["bfloat16"]
    how = f"bfloat16 runs at {gain:.2f} times the speed of float32 here"
    if gain >= _WORTH:
        return models["bfloat16"], f"bfloat16, measured: {how}"
    return models["float32"], f"float32, measured: {how}"


def load_codec(tokenizer: Any, model: str | Path | None) -> ChatCodec:
    """The chat code of a tokenizer; raises CheckpointError without a usable chat template."""
    return codec_of(tokenizer, name="" if model is None else str(model))


def _cannot(what: str, model: str | Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    folder = Path(model)
    if not folder.exists():
        return f"no {what} at {str(model)!r}: no such folder, and no model of that name at hand ({reason})"
    return f"cannot load a {what} from {str(model)!r}: expected a folder made by save_pretrained ({reason})"
