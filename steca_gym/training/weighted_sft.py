"""Reward-weighted maximum likelihood on trajectories (STeCa, arXiv 2502.14276). With equal weights it is plain SFT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.agent import Prompt
from steca_gym.training.base import OnLog, TrainReport
from steca_gym.training.fitting import Objective, fit_model
from steca_gym.training.samples import IGNORED, Collator, encode_samples
from steca_gym.training.settings import TrainSettings
from steca_gym.trajectory import WeightedTrajectory

if TYPE_CHECKING:
    import torch


class WeightedSFT:
    """Minimizes ``-E[R(e) * log pi(e | prefix)]`` over the trainable turns.

    The loss of an optimizer step is ``sum_i R_i * sum_t nll_it / N``. ``N`` counts all its forward passes and
    processes: the trained tokens, or the samples (``loss_normalization``).

    Example::

        trainer = WeightedSFT(TrainSettings(num_epochs=1, learning_rate=1e-5))
        report = trainer.fit(Path("model"), samples, Path("trained"), prompt=prompt)
    """

    def __init__(self, settings: TrainSettings) -> None:
        """``settings``: how to train; they are valid once constructed."""
        self.settings = settings

    def fit(
        self,
        model: Path,
        data: Sequence[WeightedTrajectory],
        out: Path,
        *,
        prompt: Prompt,
        on_log: OnLog | None = None,
    ) -> TrainReport:
        """Train; see ``train`` for arguments and errors."""
        return train(model, data, prompt=prompt, settings=self.settings, output_dir=out, on_log=on_log)


def train(
    model: str | Path | Any,
    samples: Sequence[WeightedTrajectory],
    *,
    prompt: Prompt,
    settings: TrainSettings,
    output_dir: Path,
    tokenizer: Any = None,
    on_log: OnLog | None = None,
) -> TrainReport:
    """Train a model on weighted trajectories, as ``WeightedSFT`` does.

    A second call with the same model, samples and settings finds the training done and returns its report. After an
    interruption the same call resumes from the last checkpoint (``settings.save_every_steps``).

    With several processes (``accelerate launch`` or ``torchrun``), each calls it with the same arguments.

    Args:
        model: a folder or name that transformers loads, or a model, which is then trained in place.
        samples: trajectories with their weights R(e), finite and >= 0.
        prompt: what comes before every episode; never trained on.
        settings: how to train.
        output_dir: where the trained model goes, as ``save_pretrained`` writes it.
        tokenizer: tokenizer of the model; None: loaded from the model's folder.
        on_log: called every ``log_every_steps`` with ``step``, ``max_steps``, ``loss``, ``learning_rate`` and
            ``grad_norm``; in the first process only.

    Raises:
        TrainingError: nothing to train on, or a loss or weights that are not finite; checkpoints are kept.
        StorageError: the disk is full or not writable; checkpoints are kept.
        CheckpointError: no usable model, or a tokenizer without a usable chat template.
        DataError: a weight that is negative or not a number.
    """

    def objective(tokenizer: Any) -> Objective:
        encoded = encode_samples(tokenizer, samples, prompt, max_length=settings.max_length, loss_on=settings.loss_on)
        return Objective(
            samples=encoded.samples,
            lengths=[len(sample.input_ids) for sample in encoded.samples],
            num_cut=encoded.num_cut,
            num_dropped=encoded.num_dropped,
            collate=Collator(encoded.samples, tokenizer.pad_token_id),
            loss=_weighted_nll,
            num_items=_num_covered if settings.loss_normalization == "tokens" else _num_sequences,
        )

    return fit_model(model, tokenizer, objective, settings=settings, out=output_dir, on_log=on_log)


def _weighted_nll(
    inputs: dict[str, torch.Tensor], nll: torch.Tensor, covered: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    weights = inputs["weights"].to(nll.device)[:, None].expand_as(covered)[covered]
    return (nll * weights).sum(), {}


def _num_covered(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return (inputs["labels"][:, 1:] != IGNORED).sum()


def _num_sequences(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.tensor(len(inputs["labels"]))
