"""Log-probabilities at the positions that a loss covers, and attention that trains fast on a CPU. No trainer here.

A language model's logits are its largest tensor (positions x vocabulary). Where the architecture allows it, only
covered positions are projected to the vocabulary, and large projections are computed in parts whose logits are
recomputed in the backward pass.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from steca_gym.training.samples import IGNORED

PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""architectures whose logits are the output embedding of the last hidden state, unscaled and uncapped. Others compute
their own logits at every position"""

_CHUNK_BYTES = 1 << 28
"""most bytes of float32 logits that are held at once"""

_SMALL_ATTENTION = "sdpa_small_in_float32"
_SMALL = 16384
"""length times width of a head up to which torch's attention on a CPU trains faster in float32 than in bfloat16: its
backward pass in bfloat16 costs 12 ms where float32 takes 4 (8 rows, 8 heads of 32, 200 tokens), and as much at twice
the size
"""


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    if query.shape[-2] * query.shape[-1] > _SMALL:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


AttentionInterface.register(_SMALL_ATTENTION, _attend)
AttentionMaskInterface.register(_SMALL_ATTENTION, sdpa_mask)


@contextmanager
def small_attention_in_float32(model: Any) -> Iterator[None]:
    """On a CPU, keep autocast away from short attention, where the model uses torch's and lets it be chosen."""
    config = getattr(model, "config", None)
    if model.device.type != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    model.set_attn_implementation(_SMALL_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def has_plain_head(model: Any) -> bool:
    """Whether ``add_covered_head`` may be used."""
    return model.config.model_type in PLAIN_HEADS


def add_covered_head(model: Any) -> None:
    """Let ``model(input_ids=..., covered=mask, targets=ids)`` return the NLL of the covered positions only.

    It goes through ``forward``, so that wrappers for several processes and for autocast see the call.
    """
    original = model.forward

    def forward(
        self: Any,
        *args: Any,
        covered: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        if covered is None or targets is None:
            return original(*args, **kwargs)
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return _project(self.get_output_embeddings(), hidden[:, :-1][covered], targets, temperature, entropy)

    model.forward = types.MethodType(forward, model)


@contextmanager
def covered_head(model: Any) -> Iterator[bool]:
    """``add_covered_head`` for a while, on a model that others continue using; yields whether the model allows it."""
    held = model.__dict__.get("forward")
    plain = has_plain_head(model)
    if plain:
        add_covered_head(model)
    try:
        yield plain
    finally:
        model.__dict__.pop("forward", None)
        if held is not None:
            model.forward = held


def _project(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    def part(rows: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _nll(head(rows), ids, temperature, entropy)

    vocabulary = int(getattr(head, "out_features", 0) or head.weight.shape[0])
    size = max(1, _CHUNK_BYTES // (4 * vocabulary))
    if len(targets) <= size:
        return part(hidden, targets)
    parts = [
        checkpoint(part, hidden[i : i + size], targets[i : i + size], use_reentrant=False)
        for i in range(0, len(targets), size)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) if entropy else None


def _nll(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    if not entropy:
        return nll, None
    log_all = torch.log_softmax(logits, dim=-1)
    return nll, -(log_all.exp() * log_all).sum(-1)


def token_nll(
    model: Any,
    inputs: dict[str, torch.Tensor],
    *,
    plain_head: bool,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Negative log-likelihood of each covered token.

    Args:
        model: a causal language model; with ``plain_head``, one that ``add_covered_head`` was called on.
        inputs: ``input_ids``, ``attention_mask``, ``labels``, each of shape (batch, length), right-padded; ``labels``
            is ``IGNORED`` where the loss does not cover the token.
        plain_head: project covered positions only.
        temperature: logits are divided by it.
        entropy: also return the entropy of the prediction of each covered token, nats.

    Returns:
        float32 NLL of shape (num_covered,), nats; the covered mask of shape (batch, length - 1), bool, whose order of
        True entries is that of the NLL; entropies or None.
    """
    labels = inputs["labels"][:, 1:]
    covered = labels != IGNORED
    # Right padding under causal attention needs no mask: no real position attends to what comes after it. Without a
    # mask attention takes its fastest kernel.
    if plain_head:
        nll, entropies = model(
            input_ids=inputs["input_ids"],
            covered=covered,
            targets=labels[covered],
            temperature=temperature,
            entropy=entropy,
        )
    else:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        nll, entropies = _nll(outputs.logits[:, :-1][covered], labels[covered], temperature, entropy)
    return nll, covered, entropies
