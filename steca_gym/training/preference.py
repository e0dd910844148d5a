"""Preference learning over trajectories: DPO on whole episodes, and step-DPO on continuations of a shared prefix.

TRL's ``DPOTrainer`` takes a completion as one block after the prompt; here completions are several turns with
observations between them, which the loss must not cover. So the loss runs on the training loop that all trainers share.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.agent import Prompt
from steca_gym.errors import TrainingError
from steca_gym.files import write_json
from steca_gym.training import checkpoints
from steca_gym.training.base import OnLog, TrainReport
from steca_gym.training.fitting import Objective, fit_model
from steca_gym.training.samples import Collator, EncodedSample, encode_samples
from steca_gym.training.settings import PreferenceSettings
from steca_gym.trajectory import PreferencePair, WeightedTrajectory

if TYPE_CHECKING:
    import torch

REFERENCE = "reference.json"
"""file in the output folder: log-probabilities of the reference model, and the digest of what they were computed for"""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as the model reads it; the labels cover trainable turns after the prefix only.

    A side is one sequence, or several where the chat template drops reasoning from past turns.
    """

    chosen: tuple[EncodedSample, ...]
    rejected: tuple[EncodedSample, ...]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(row.input_ids) for row in (*self.chosen, *self.rejected))


class Preference:
    r"""Direct preference optimization (DPO, arXiv 2305.18290) on pairs of trajectories.

    The loss of a pair, with ``log p`` summed over the trainable tokens after the prefix::

        margin = beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected)))
        loss = -(1 - s) * log sigmoid(margin) - s * log sigmoid(-margin) + sft_weight * mean NLL of the chosen tokens

    ``s`` is ``label_smoothing``. An optimizer step averages over the pairs of all its forward passes and processes. The
    reference is the model as it was given; its log-probabilities are computed once and kept in the output folder, so
    that only one model is in memory. Without a prefix this is ETO's loss; with pairs that differ in one step, step-DPO.

    Reported: ``reward_margin`` (mean margin), ``reward_accuracy`` (share of pairs with a margin above 0).

    Example::

        trainer = Preference(PreferenceSettings(num_epochs=1, beta=0.1))
        report = trainer.fit(Path("model"), pairs, Path("trained"), prompt=prompt)
    """

    def __init__(self, settings: PreferenceSettings) -> None:
        """``settings``: how to train; they are valid once constructed."""
        self.settings = settings

    def fit(
        self, model: Path, data: Sequence[PreferencePair], out: Path, *, prompt: Prompt, on_log: OnLog | None = None
    ) -> TrainReport:
        """Train the model in folder ``model`` on the pairs and write the result to ``out``.

        The same call after an interruption resumes; after the end it returns the report of the finished training. With
        several processes (``accelerate launch``), each calls it with the same arguments.

        Raises:
            TrainingError: nothing to train on, or a loss or weights that are not finite; checkpoints are kept.
            StorageError: the disk is full or not writable; checkpoints are kept.
            CheckpointError: no usable model, or a tokenizer without a usable chat template.
        """
        settings = self.settings

        def objective(tokenizer: Any) -> Objective:
            pairs, num_cut = encode_pairs(tokenizer, data, prompt, max_length=settings.max_length)
            collate = PairCollator(pairs, tokenizer.pad_token_id)

            def prepare(model: Any, bf16: bool) -> None:
                collate.reference = _reference(model, collate, settings, bf16=bf16, path=out / REFERENCE)

            return Objective(
                samples=pairs,
                lengths=[p.length for p in pairs],
                num_cut=num_cut,
                num_dropped=len(data) - len(pairs),
                collate=collate,  # pyright: ignore[reportArgumentType]
                loss=lambda inputs, nll, covered: _dpo(inputs, nll, covered, settings),
                num_items=_num_pairs,
                prepare=prepare,
            )

        return fit_model(model, None, objective, settings=settings, out=out, on_log=on_log)


def encode_pairs(
    tokenizer: Any, pairs: Sequence[PreferencePair], prompt: Prompt, *, max_length: int
) -> tuple[tuple[EncodedPair, ...], int]:
    """Encode pairs; those with a side that has no token to train on (after the cut) are left out.

    Returns:
        the pairs, and how many had a side that was cut to ``max_length``.

    Raises:
        TrainingError: no pair is left.
    """
    kept: list[EncodedPair] = []
    num_cut = 0
    for pair in pairs:
        sides: list[tuple[EncodedSample, ...]] = []
        cut = False
        for trajectory in (pair.chosen, pair.rejected):
            try:
                encoded = encode_samples(
                    tokenizer, [WeightedTrajectory(trajectory=trajectory)], prompt, max_length=max_length
                )
            except TrainingError:
                break  # nothing to train on is left of this side
            if encoded.num_dropped:
                break  # some turns of this side do not fit
            cut = cut or encoded.num_cut > 0
            sides.append(encoded.samples)
        if len(sides) == 2:
            num_cut += cut
            kept.append(EncodedPair(*sides))
    if not kept:
        raise TrainingError(
            f"nothing to train on: {len(pairs)} pairs came and none has trainable tokens on both sides within "
            f"{max_length} tokens; raise max_length or check the pairs' trainable steps"
        )
    return tuple(kept), num_cut


class PairCollator:
    """Batches of pairs: the sequences of the chosen sides, then those of the rejected sides, padded to one length.

    Beside the tensors of ``Collator`` a batch has ``side``, int64, shape (sequences,): pair ``p`` of ``n`` has side
    ``p`` (chosen) and side ``n + p`` (rejected); and ``reference``, the reference model's log-probability of each
    side's covered tokens, float32, shape (2 * n,).
    """

    def __init__(self, pairs: Sequence[EncodedPair], pad_token_id: int) -> None:
        """Hold the pairs as tensors."""
        self._num_pairs = len(pairs)
        self.sequences = [row for side in (*(p.chosen for p in pairs), *(p.rejected for p in pairs)) for row in side]
        sizes = [len(side) for side in (*(p.chosen for p in pairs), *(p.rejected for p in pairs))]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._of_side = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        self.rows = Collator(self.sequences, pad_token_id)
        self.reference: list[float] = [0.0] * len(self.sequences)
        """log-probability per sequence; set before training"""

    @property
    def pad_to_multiple_of(self) -> int:
        """Tokens; a batch's length is a multiple of it."""
        return self.rows.pad_to_multiple_of

    @pad_to_multiple_of.setter
    def pad_to_multiple_of(self, multiple: int) -> None:
        self.rows.pad_to_multiple_of = multiple

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad a batch."""
        import torch

        pairs = [int(feature["index"]) for feature in features]
        sides = [self._of_side[i] for i in (*pairs, *(i + self._num_pairs for i in pairs))]
        batch = self.rows([{"index": row} for side in sides for row in side])
        reference = [sum(self.reference[row] for row in side) for side in sides]
        batch["side"] = torch.tensor([number for number, side in enumerate(sides) for _ in side])
        batch["reference"] = torch.tensor(reference, dtype=torch.float32)
        return batch


def _num_pairs(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.tensor(len(inputs["reference"]) // 2)


def _sums(values: torch.Tensor, owners: torch.Tensor, size: int) -> torch.Tensor:
    """Sum values by owner: ``owners`` has the index of each value's owner, the result the shape (size,)."""
    import torch

    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, owners, values)


def _dpo(
    inputs: dict[str, torch.Tensor], nll: torch.Tensor, covered: torch.Tensor, settings: PreferenceSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    import torch
    from torch.nn.functional import logsigmoid

    reference = inputs["reference"].to(nll.device)
    num_pairs = len(reference) // 2
    owners = inputs["side"].to(nll.device)[torch.nonzero(covered)[:, 0]]
    sums = _sums(nll, owners, 2 * num_pairs)
    log_ratios = -sums - reference
    margins = settings.beta * (log_ratios[:num_pairs] - log_ratios[num_pairs:])
    smoothing = settings.label_smoothing
    losses = -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)
    if settings.sft_weight > 0:
        counts = _sums(torch.ones_like(nll), owners, 2 * num_pairs)
        losses = losses + settings.sft_weight * (sums / counts.clamp(min=1))[:num_pairs]
    metrics = {"reward_margin": margins.sum(), "reward_accuracy": (margins > 0).float().sum()}
    return losses.sum(), metrics


def _reference(
    model: Any,
    collate: PairCollator,
    settings: PreferenceSettings,
    *,
    bf16: bool,
    path: Path,
) -> list[float]:
    """Log-probability of every sequence under the model as it is now; from ``path`` if computed before."""
    import torch

    from steca_gym.training.heads import token_nll

    rows = collate.sequences
    digest = hashlib.blake2b(f"{bf16} {checkpoints.model_digest(model)}".encode(), digest_size=12)
    for row in rows:
        digest.update(repr((row.input_ids, row.labels)).encode())
    known = _read_reference(path, digest.hexdigest(), len(rows))
    if known is not None:
        return known
    # Every process computes all: equal numbers everywhere, whatever the number of processes.
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i))
    sums = [0.0] * len(rows)
    size = 2 * settings.per_device_batch_size
    mode = model.training
    model.eval()
    try:
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            batch = {k: v.to(model.device) for k, v in collate.rows([{"index": i} for i in indices]).items()}
            with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                nll, covered, _ = token_nll(model, batch, plain_head=False)
            totals = -_sums(nll.float(), torch.nonzero(covered)[:, 0], len(indices))
            for index, total in zip(indices, totals.tolist(), strict=True):
                sums[index] = total
    finally:
        model.train(mode)
    if not all(math.isfinite(total) for total in sums):
        raise TrainingError(
            "log-probabilities of the reference model are not finite numbers; check the model's weights, or use fp32"
        )
    write_json(path, {"of": digest.hexdigest(), "log_probs": sums})
    return sums


def _read_reference(path: Path, digest: str, num_rows: int) -> list[float] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        sums = [float(total) for total in note["log_probs"]]
        return sums if note["of"] == digest and len(sums) == num_rows else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
