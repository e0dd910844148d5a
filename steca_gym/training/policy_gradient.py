"""Policy gradients on the live weights of an agent: REINFORCE, PPO's clipping, KL to a reference, entropy."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steca_gym.agent import Agent, Prompt
from steca_gym.errors import CheckpointError, ConfigError, TrainingError
from steca_gym.files import storage_errors, write_json
from steca_gym.provenance import PROVENANCE_FILE
from steca_gym.training import checkpoints
from steca_gym.training.base import EpisodeGroup
from steca_gym.training.policy_batches import PolicyBatches, PolicyRow, make_rows
from steca_gym.training.processes import Processes
from steca_gym.training.quiet import quiet_transformers
from steca_gym.training.samples import encode_samples
from steca_gym.training.settings import PolicyGradientSettings, padding_multiple
from steca_gym.trajectory import WeightedTrajectory

if TYPE_CHECKING:
    import torch

STATE = "trainer.json"
"""file in a saved folder: the numbers of steps, the settings, and the digest of the reference model"""

_NO_LIMIT = 1 << 62
"""episodes are cut here, at their end: what is left has the context that it was sampled in"""

_SAME_RESULT = ("per_device_batch_size", "pad_to_multiple_of", "gradient_checkpointing")
"""settings that do not change what is trained (but for rounding)"""

_FIGURES = ("loss", "entropy", "approx_kl", "clip_fraction")
"""summed over the tokens of a step"""


class LiveAgent(Agent, Protocol):
    """An agent whose weights can be trained while it plays.

    Where it has a method ``weights_changed()``, that is called after each optimizer step.
    """

    model: Any
    """a causal language model of transformers, as a ``torch.nn.Module``"""
    tokenizer: Any


class PolicyGradient:
    r"""Improves the weights that an agent plays with, from its episodes and their advantages.

    The loss of an optimizer step, summed over trained tokens ``t`` and divided as ``loss_normalization`` says::

        ratio_t = pi(token_t) / pi_old(token_t)
        loss = sum_t -min(ratio_t * A_t, clip(ratio_t) * A_t) + kl_coef * KL_t - entropy_coef * entropy_t

    With one optimizer step per ``step`` and no clipping this is REINFORCE (Williams 1992); with ``clip_range`` it is
    the policy loss of PPO (arXiv 1707.06347) and GRPO (arXiv 2402.03300). Advantages are the caller's.

    Example::

        agent = TransformersAgent(model=model, tokenizer=tokenizer)
        trainer = PolicyGradient(PolicyGradientSettings(learning_rate=1e-5), agent=agent, prompt=prompt)
        for _ in range(100):
            episodes = [e.trajectory for e in collector.run(requests)]       # the collector plays with ``agent``
            metrics = trainer.step(groups_of(episodes))
            trainer.save(Path("online"))

    The weights are trained in the model's own number type: use a float32 model.

    In several processes (``accelerate launch`` with the configuration ``ddp``) each is given the same episodes and
    trains on its share; loss and weights are those of one process, but for rounding and the draws of dropout.
    """

    def __init__(self, settings: PolicyGradientSettings, *, agent: LiveAgent, prompt: Prompt) -> None:
        """Take over the agent's weights.

        Args:
            settings: how to train.
            agent: plays with the weights that are trained.
            prompt: what comes before every episode; never trained on.

        Raises:
            ConfigError: an agent without a model, or a launcher that shards it.
            CheckpointError: a tokenizer or a generation config that cannot be used or saved.
        """
        import torch

        if getattr(agent, "model", None) is None or getattr(agent, "tokenizer", None) is None:
            raise ConfigError(
                f"agent {agent.name!r} has no model to train; expected one with .model and .tokenizer, such as "
                "TransformersAgent(model=model, tokenizer=tokenizer)"
            )
        self.processes = Processes()
        self.settings = settings
        self.agent: Agent = agent
        self.prompt = prompt
        self.num_steps = 0
        self.num_optimizer_steps = 0
        self._model, self._tokenizer = checkpoints.load_model(agent.model, agent.tokenizer)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        if not self._parameters:
            raise ConfigError(
                f"the model of agent {agent.name!r} has no weight with requires_grad; nothing can be trained"
            )
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            weight_decay=settings.weight_decay,
        )
        self._reference: Any = None
        if settings.kl_coef > 0:
            self._reference = copy.deepcopy(self._model).requires_grad_(False).eval()

    def step(self, groups: Sequence[EpisodeGroup]) -> Mapping[str, float]:
        """Improve the weights on these episodes.

        Returns:
            means over the trained tokens: ``loss``, ``entropy`` (nats), ``approx_kl`` (of the weights before the step
            from those after), ``clip_fraction``, ``kl`` (from the reference, with ``kl_coef``); of the last optimizer
            step: ``grad_norm`` (before clipping), ``learning_rate``; ``num_episodes``, ``num_tokens``, ``num_cut``.

        Raises:
            TrainingError: nothing to train on, or a loss or gradient that is not finite; that optimizer step is not
                made.
            DataError: advantages or log-probabilities that do not fit the episodes' tokens.
        """
        import torch

        episodes, num_cut = self._encode(groups)
        self.processes.check_equal([[row.sample.input_ids for row in rows] for rows in episodes], "episodes")
        settings = self.settings
        bf16, on_cpu = settings.precision == "bf16", self._model.device.type == "cpu"
        multiple = padding_multiple(settings, bf16=bf16, on_cpu=on_cpu)
        batches = PolicyBatches(episodes, self._tokenizer.pad_token_id, multiple)
        totals: dict[str, float] = {}
        seed = (settings.seed << 32) + self.num_steps + (self.processes.rank << 24)
        # Dropout draws from a seed of the step's own, so that a restored training draws the same.
        with torch.random.fork_rng(devices=[]), self._training() as plain_head:
            torch.manual_seed(seed % (1 << 63))
            if settings.num_passes * settings.num_minibatches > 1:
                self._fill_old(batches, plain_head)
            for indices in self._minibatches(len(episodes)):
                self._optimize(batches, indices, plain_head, totals)
        self.num_steps += 1
        num_read = max(totals.pop("tokens_read"), 1.0)
        means = {name: total / num_read for name, total in totals.items() if name not in ("grad_norm", "learning_rate")}
        return {
            **means,
            "grad_norm": totals["grad_norm"],
            "learning_rate": totals["learning_rate"],
            "num_episodes": float(len(episodes)),
            "num_tokens": float(sum(batches.num_covered)),
            "num_cut": float(num_cut),
        }

    def save(self, out: Path) -> None:
        """Write a model folder with the optimizer's state; an interruption leaves the old one or the new one.

        Raises:
            StorageError: the disk is full or not writable; what was saved before is kept.
        """
        import torch

        def write(folder: Path) -> None:
            self._model.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
            torch.save(self._optimizer.state_dict(), folder / "optimizer.pt")
            write_json(folder / STATE, self._state())
            if (out / PROVENANCE_FILE).exists():
                shutil.copy2(out / PROVENANCE_FILE, folder / PROVENANCE_FILE)

        checkpoints.check_finite(self._model)
        if self.processes.is_first:
            with quiet_transformers(), storage_errors("the training", out):
                checkpoints.replace_folder(out, write)
        self.processes.wait()

    def restore(self, path: Path) -> None:
        """Load what ``save`` wrote into the live weights and the optimizer, bit for bit.

        Construct the trainer as the saved one was: with the same settings and, with ``kl_coef``, from the same model.

        Raises:
            CheckpointError: nothing complete is there, or it is of another training.
        """
        import torch
        from transformers import AutoModelForCausalLM

        folder = checkpoints.complete_folder(path)
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self._check_state(state, folder)
            optimizer = torch.load(folder / "optimizer.pt", map_location=self._model.device, weights_only=True)
            with quiet_transformers():
                loaded = AutoModelForCausalLM.from_pretrained(
                    str(folder), dtype=self._model.dtype, trust_remote_code=False
                )
            self._model.load_state_dict(loaded.state_dict())
            self._optimizer.load_state_dict(optimizer)
        except CheckpointError:
            raise
        except Exception as error:  # torch and transformers raise many kinds for files that do not fit
            raise CheckpointError(
                f"cannot restore a training from {str(path)!r}: {' '.join(str(error).split())[:200]}; remove it to "
                "start again"
            ) from error
        self.num_steps = int(state["num_steps"])
        self.num_optimizer_steps = int(state["num_optimizer_steps"])
        self._tell_agent()

    # -- inside ------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        return {
            "num_steps": self.num_steps,
            "num_optimizer_steps": self.num_optimizer_steps,
            "settings": {name: value for name, value in settings.items() if name not in _SAME_RESULT},
            "reference": None if self._reference is None else checkpoints.model_digest(self._reference),
        }

    def _check_state(self, state: dict[str, Any], folder: Path) -> None:
        mine = self._state()
        theirs = state["settings"]
        differing = [
            f"{name} ({theirs.get(name)!r} there, {mine['settings'].get(name)!r} here)"
            for name in sorted({*theirs, *mine["settings"]})
            if theirs.get(name) != mine["settings"].get(name)
        ]
        if differing:
            raise CheckpointError(
                f"{str(folder)!r} was trained with other settings: {', '.join(differing)}; use the same settings, or "
                "load the folder as a model to start a new training"
            )
        if state["reference"] != mine["reference"]:
            raise CheckpointError(
                f"{str(folder)!r} was trained with another reference model; construct the trainer from the model that "
                "the training began with"
            )

    @contextlib.contextmanager
    def _training(self) -> Iterator[bool]:
        from steca_gym.training.heads import covered_head, small_attention_in_float32

        model = self._model
        mode = model.training
        with contextlib.ExitStack() as stack:
            stack.enter_context(small_attention_in_float32(model))
            plain_head = stack.enter_context(covered_head(model))
            if self._reference is not None:
                stack.enter_context(covered_head(self._reference))
            model.train()
            if self.settings.gradient_checkpointing:
                model.activation_checkpointing_enable()
            try:
                yield plain_head
            finally:
                if self.settings.gradient_checkpointing:
                    model.activation_checkpointing_disable()
                model.zero_grad(set_to_none=True)
                model.train(mode)

    def _encode(self, groups: Sequence[EpisodeGroup]) -> tuple[list[list[PolicyRow]], int]:
        """The rows of each episode, and how many episodes were cut."""
        episodes: list[list[PolicyRow]] = []
        num_cut = 0
        for group in groups:
            for index, episode in enumerate(group.episodes):
                if not any(step.trainable for step in episode.steps):
                    continue
                log_probs = None if group.log_probs is None else group.log_probs[index]
                sample = WeightedTrajectory(trajectory=episode)
                encoded = encode_samples(self._tokenizer, [sample], self.prompt, max_length=_NO_LIMIT).samples
                whole = make_rows(encoded, episode, group.advantages[index], log_probs)
                rows = [row.cut(self.settings.max_length) for row in whole]
                num_cut += any(len(row.sample.input_ids) > self.settings.max_length for row in whole)
                if kept := [row for row in rows if row.advantages]:
                    episodes.append(kept)
        if not episodes:
            raise TrainingError(
                f"nothing to train on: {sum(len(g.episodes) for g in groups)} episodes came and none has a trainable "
                f"token within {self.settings.max_length} tokens; raise max_length or check their trainable steps"
            )
        return episodes, num_cut

    def _minibatches(self, num_episodes: int) -> Iterator[list[int]]:
        import numpy as np

        settings = self.settings
        for number in range(settings.num_passes):
            order = np.arange(num_episodes)
            if settings.num_minibatches > 1:
                order = np.random.default_rng((settings.seed, self.num_steps, number)).permutation(num_episodes)
            for part in np.array_split(order, settings.num_minibatches):
                if len(part):
                    yield part.tolist()

    def _forward(
        self, model: Any, batch: dict[str, torch.Tensor], plain_head: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the covered tokens, each of shape (num_covered,)."""
        import torch

        from steca_gym.training.heads import token_nll

        settings = self.settings
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            nll, _, entropy = token_nll(
                model, batch, plain_head=plain_head, temperature=settings.temperature, entropy=True
            )
        assert entropy is not None
        return -nll.float(), entropy.float()

    def _fill_old(self, batches: PolicyBatches, plain_head: bool) -> None:
        """Compute the old log-probabilities that the groups did not bring."""
        import torch

        for indices in batches.micro(range(len(batches)), self.settings.per_device_batch_size):
            if not any(math.isnan(x) for i in indices for x in batches.rows[i].old):
                continue
            with torch.no_grad():
                new, _ = self._forward(self._model, batches.inputs(indices, self._model.device), plain_head)
            batches.set_old(indices, new)

    def _optimize(
        self, batches: PolicyBatches, episodes: Sequence[int], plain_head: bool, totals: dict[str, float]
    ) -> None:
        """One optimizer step on these episodes."""
        import torch

        settings = self.settings
        indices = [row for episode in episodes for row in batches.of_episode[episode]]
        num_tokens = sum(batches.num_covered[i] for i in indices)
        divisor = num_tokens if settings.loss_normalization == "tokens" else len(episodes)
        sums: dict[str, float] = {}
        for part in batches.micro(self.processes.share(indices), settings.per_device_batch_size):
            batch = batches.inputs(part, self._model.device)
            new, entropy = self._forward(self._model, batch, plain_head)
            advantages, given = batches.targets(part, self._model.device)
            old = torch.where(torch.isnan(given), new.detach(), given)
            ratio = torch.exp(new - old)
            gains = ratio * advantages
            clipped = torch.zeros_like(ratio, dtype=torch.bool)
            if settings.clip_range is not None:
                high = settings.clip_range if settings.clip_range_high is None else settings.clip_range_high
                bounded = ratio.clamp(1 - settings.clip_range, 1 + high) * advantages
                clipped = bounded < gains
                gains = torch.minimum(gains, bounded)
            total = -gains
            if self._reference is not None:
                with torch.no_grad():
                    reference, _ = self._forward(self._reference, batch, plain_head)
                gap = reference - new
                divergence = torch.exp(gap) - gap - 1
                total = total + settings.kl_coef * divergence
                sums["kl"] = sums.get("kl", 0.0) + float(divergence.detach().sum())
            if settings.entropy_coef > 0:
                total = total - settings.entropy_coef * entropy
            loss = total.sum() / divisor
            if not torch.isfinite(loss):
                raise self._not_finite("loss", float(loss.detach()))
            loss.backward()
            with torch.no_grad():
                figures = {
                    "loss": total.sum(),
                    "entropy": entropy.sum(),
                    "approx_kl": (ratio - 1 - (new - old)).sum(),
                    "clip_fraction": clipped.sum(),
                }
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        self.processes.sum_gradients(self._parameters)
        names = _FIGURES if self._reference is None else (*_FIGURES, "kl")
        sums = self.processes.sums(sums, names, self._model.device)
        limit = settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        if not math.isfinite(norm):
            raise self._not_finite("gradient's norm", norm)
        warm = min(1.0, (self.num_optimizer_steps + 1) / max(settings.warmup_steps, 1))
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.num_optimizer_steps += 1
        self._tell_agent()
        for name, value in {**sums, "tokens_read": float(num_tokens)}.items():
            totals[name] = totals.get(name, 0.0) + value
        totals["grad_norm"], totals["learning_rate"] = norm, settings.learning_rate * warm

    def _not_finite(self, what: str, value: float) -> TrainingError:
        return TrainingError(
            f"the {what} is {value} at step {self.num_steps + 1} (expected a finite number); lower the learning rate, "
            "train in fp32, or check the advantages"
        )

    def _tell_agent(self) -> None:
        changed = getattr(self.agent, "weights_changed", None)
        if changed is not None:
            changed()
