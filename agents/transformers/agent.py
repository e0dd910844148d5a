# ruff: noqa: TID251 - ruff takes relative imports in this folder for the banned top-level name
"""Any causal language model as an agent: conversations in, turns out.

Knows messages, chat templates and engines. Knows no environment and no training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steca_gym.agent import Need, Turn, TurnRequest
from steca_gym.errors import ConfigError

from .generating import GeneratingEngine, Row
from .loading import load_codec, load_model, load_tokenizer


class TransformersAgent:
    """A causal language model by name, by folder, or as a live model.

    Args:
        model: a folder or name for ``from_pretrained``, or a model (then ``tokenizer`` must be given).
        tokenizer: a tokenizer with a chat template; by default the one beside the model.
        dtype: "float32", "bfloat16", "float16", or "auto": what measures faster on this machine.
        device: where to run; by default a GPU if there is one, else the CPU.
        max_batch_size: rows that are decoded at once, >= 1.
        name: what trajectories call the agent; by default the folder's name.

    Raises:
        CheckpointError: no usable model, or a tokenizer without an append-only chat template.
        ConfigError: settings that cannot work.
    """

    needs: frozenset[Need] = frozenset()

    def __init__(
        self,
        model: str | Path | Any,
        *,
        tokenizer: Any = None,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        """See the class."""
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size must be >= 1 row, got {max_batch_size}")
        path = model if isinstance(model, str | Path) else None
        if tokenizer is None:
            if path is None:
                raise ConfigError("a live model was given without its tokenizer; pass tokenizer=...")
            tokenizer = load_tokenizer(path)
        self.tokenizer = tokenizer
        self.codec = load_codec(tokenizer, path)
        loaded: Any = model if path is None else load_model(path, dtype)
        self.model = loaded
        self.name = name or (Path(path).name if path is not None else type(self.model).__name__)
        if device is not None:
            self.model.to(device)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.codec.end_ids[-1]
        self.engine = GeneratingEngine(
            self.model, stop_ids=self.codec.stop_ids, pad_id=pad, max_batch_size=max_batch_size
        )

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the model so far."""
        return self.engine.model_seconds

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request once, in order."""
        if not requests:
            return []
        rows = []
        for request in requests:
            prompt, _ = self.codec.encode(request.messages, for_generation=True)
            sampling = request.sampling
            rows.append(
                Row(
                    prompt=prompt,
                    seed=request.seed,
                    turn=request.turn,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_new_tokens=sampling.max_new_tokens,
                )
            )
        return [
            Turn(
                text=self.codec.decode(said),
                token_ids=tuple(said),
                num_prompt_tokens_read=len(row.prompt),
                num_sampled_tokens=len(said),
            )
            for row, said in zip(rows, self.engine.decode(rows), strict=True)
        ]

    def release(self, episode_ids: Iterable[str]) -> None:
        """Nothing is kept between turns."""
