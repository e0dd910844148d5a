"""The processes of one data-parallel training: sums over them, and a check that all were given the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from steca_gym.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    import torch


class Processes:
    """Joins the processes that ``torchrun`` or ``accelerate launch`` has started; one process needs neither.

    Raises:
        ConfigError: the launcher shards the model, which needs a trainer that knows of it.
        TrainingError: not as many processes joined as the launcher says.
    """

    def __init__(self) -> None:
        """Join."""
        self.rank, self.size = 0, 1
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if expected == 1:
            return
        for name in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
                raise ConfigError(
                    f"an online training needs the whole model in each process, and the launcher shards it ({name}); "
                    "launch with the configuration ddp"
                )
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.size = state.process_index, state.num_processes
        if self.size != expected:
            raise TrainingError(f"expected {expected} processes (WORLD_SIZE), got {self.size}; start with `torchrun`")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, indices: Iterable[int]) -> list[int]:
        """This process's part of them: every ``size``-th."""
        return [index for number, index in enumerate(indices) if number % self.size == self.rank]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient with the sum over the processes; one that is missing counts as zeros."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as distributed

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def sums(self, values: Mapping[str, float], names: Iterable[str], device: Any) -> dict[str, float]:
        """The sum of each value over the processes; a process that lacks one adds nothing."""
        if self.size == 1:
            return dict(values)
        import torch
        import torch.distributed as distributed

        ordered = sorted(names)
        total = torch.tensor([values.get(n, 0.0) for n in ordered], dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return dict(zip(ordered, total.tolist(), strict=True))

    def check_equal(self, value: object, what: str) -> None:
        """Raise TrainingError in every process where they were given different things."""
        if self.size == 1:
            return
        import torch.distributed as distributed

        found: list[object] = [None] * self.size
        distributed.all_gather_object(found, value)
        other = next((rank for rank, theirs in enumerate(found) if theirs != found[0]), None)
        if other is not None:
            raise TrainingError(
                f"process {other} was given other {what} than process 0; give every process the same: play them with "
                "the same seeds, or send them round with accelerate.utils.broadcast_object_list"
            )

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            import torch.distributed as distributed

            distributed.barrier()
