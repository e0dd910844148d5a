# ruff: noqa: TID251 - ruff takes relative imports in this folder for the banned top-level name
"""Any causal language model as an agent: conversations in, turns out.

Knows messages, chat templates and engines. Knows no environment and no training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from steca_gym.agent import Message, Need, Turn, TurnRequest
from steca_gym.errors import AgentError, CheckpointError, ConfigError

from .engine import BlockEngine
from .generating import GeneratingEngine, Row
from .loading import load_codec, load_model, load_tokenizer

_LOG = logging.getLogger(__name__)
# Largest difference of logits, in parts of the largest, at which an engine still counts as right.
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}

EngineName = Literal["auto", "blocks", "generate"]


class TransformersAgent:
    """A causal language model by name, by folder, or as a live model.

    Sampled ids are kept with their turns and stand in the next prompt to the id. A turn's sample is decided
    by the request's seed and turn, not by what else is in the batch. With the block engine, turns are
    handed back one by one (``submit``, ``poll``), histories are not read again, and forks share what they
    begin with.

    Args:
        model: a folder or name for ``from_pretrained``, or a model (then ``tokenizer`` must be given).
        tokenizer: a tokenizer with a chat template; by default the one beside the model.
        dtype: "float32", "bfloat16", "float16", or "auto": what measures faster on this machine. A live model
            keeps its own.
        device: where to run; by default a GPU if there is one, else the CPU. A live model stays where it is.
        max_batch_size: rows that are decoded at once, >= 1.
        kv_cache_gib: most memory for keys and values, in GiB.
        engine: "blocks" (continuous batching over a block cache), "generate" (``generate()`` once a turn), or
            "auto": blocks where the model can be read so, else generate; the reason is logged and stands in
            ``engine_line``.
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
        kv_cache_gib: float = 4.0,
        engine: EngineName = "auto",
        name: str | None = None,
    ) -> None:
        """See the class."""
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size must be >= 1 row, got {max_batch_size}")
        if kv_cache_gib <= 0:
            raise ConfigError(f"kv_cache_gib must be > 0, got {kv_cache_gib}")
        if engine not in ("auto", "blocks", "generate"):
            raise ConfigError(f"engine must be auto, blocks or generate, got {engine!r}")
        path = model if isinstance(model, str | Path) else None
        if tokenizer is None:
            if path is None:
                raise ConfigError("a live model was given without its tokenizer; pass tokenizer=...")
            tokenizer = load_tokenizer(path)
        self.tokenizer = tokenizer
        self.codec = load_codec(tokenizer, path)
        self.model: Any
        if path is None:
            self.model = model
            chosen = f"{self.dtype}, its own"
        else:
            self.model, chosen = load_model(path, dtype, device)
        self.name = name or (Path(path).name if path is not None else type(self.model).__name__)
        self.force: Callable[[TurnRequest], Sequence[int] | None] | None = None
        """for measurements: ids to be said in place of drawn ones; the model is asked all the same"""
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.codec.end_ids[-1]
        self._generating = GeneratingEngine(
            self.model, stop_ids=self.codec.stop_ids, pad_id=int(pad), max_batch_size=max_batch_size
        )
        self._blocks: BlockEngine | None = None
        why = "as asked for"
        if engine != "generate":
            try:
                blocks = BlockEngine(
                    self.model,
                    stop_ids=self.codec.stop_ids,
                    max_batch_size=max_batch_size,
                    kv_cache_gib=kv_cache_gib,
                )
                blocks.check(tolerance=_TOLERANCE.get(self.dtype, 0.1))
                self._blocks, why = blocks, "histories are read once"
            except (CheckpointError, AttributeError, NotImplementedError) as error:
                if engine == "blocks":
                    raise CheckpointError(f"engine=blocks: {error}; use engine=generate") from error
                why = f"{error}; histories are read again each turn"
        self.engine_line = f"{self.name}: {'blocks' if self._blocks else 'generate'} ({why}); {chosen}"
        """one line: which engine, which dtype, and why"""
        _LOG.info(self.engine_line)
        self._conversations: dict[str, tuple[tuple[Message, ...], list[int]]] = {}
        self._asked: dict[str, TurnRequest] = {}
        self._answered: list[tuple[str, Turn | Exception]] = []
        self._weights = self._weights_version()

    @property
    def dtype(self) -> str:
        """The number type that the model computes in, such as "float32"; empty where a live model does not say."""
        return str(getattr(self.model, "dtype", "")).removeprefix("torch.")

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the model so far, drawing included."""
        return self._generating.model_seconds + (self._blocks.model_seconds if self._blocks else 0.0)

    # -- Agent ---------------------------------------------------------------------------------------------

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request once, in order; raises AgentError where one cannot be answered."""
        if self._asked:
            raise AgentError("act() while submitted requests are under way; poll() them first")
        self.submit(requests)
        turns: dict[str, Turn | Exception] = {}
        while self._asked or self._answered:
            turns.update(self.poll())
        answers: list[Turn] = []
        for request in requests:
            turn = turns[request.episode_id]
            if not isinstance(turn, Turn):
                raise turn
            answers.append(turn)
        return answers

    def release(self, episode_ids: Iterable[str]) -> None:
        """Forget episodes; what they read stays shareable until its place is needed."""
        gone = list(episode_ids)
        for episode_id in gone:
            self._conversations.pop(episode_id, None)
            self._asked.pop(episode_id, None)
        if self._blocks is not None:
            self._blocks.release(gone)

    def forget(self) -> None:
        """Forget every episode and all that was read, shareable blocks too."""
        self._conversations.clear()
        self._asked.clear()
        if self._blocks is not None:
            self._blocks.forget_all()

    # -- StreamingAgent ------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Take requests; at most one per episode may be under way."""
        if not self._asked:
            self._forget_if_trained()
        rows = []
        for request in requests:
            if request.episode_id in self._asked:
                raise AgentError(f"episode {request.episode_id!r} has a request under way already")
            prompt = self._prompt(request)
            sampling = request.sampling
            row = Row(
                prompt=prompt,
                seed=request.seed,
                turn=request.turn,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_new_tokens,
                forced=None if self.force is None else self.force(request),
            )
            self._asked[request.episode_id] = request
            rows.append(row)
            if self._blocks is not None:
                self._blocks.submit(request.episode_id, row)
        if self._blocks is None:
            self._generate(requests, rows)

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """Work until at least one turn is done; empty only when nothing is under way."""
        if self._blocks is None:
            answered, self._answered = self._answered, []
            for episode_id, _ in answered:
                self._asked.pop(episode_id, None)
            return answered
        turns: list[tuple[str, Turn | Exception]] = []
        for episode_id, said in self._blocks.poll():
            self._asked.pop(episode_id, None)
            if isinstance(said, Exception):
                turns.append((episode_id, said))
                continue
            held = self._conversations.get(episode_id)
            if held is not None:
                held[1].extend(said.tokens)
            turn = Turn(
                text=self.codec.decode(said.tokens),
                token_ids=said.tokens,
                num_prompt_tokens_read=said.num_read,
                num_prompt_tokens_reused=said.num_reused,
                num_sampled_tokens=said.num_sampled,
            )
            turns.append((episode_id, turn))
        return turns

    # -- inside --------------------------------------------------------------------------------------------

    def _prompt(self, request: TurnRequest) -> list[int]:
        """Ids of the whole conversation; of a known one only the new messages are tokenised."""
        held = self._conversations.get(request.episode_id)
        messages = request.messages
        if held is not None:
            before, ids = held
            grown = len(before) + 1
            said = messages[len(before)] if len(messages) > grown else None
            if (
                said is not None
                and said.token_ids is not None
                and messages[: len(before)] == before
                and tuple(ids[len(ids) - len(said.token_ids) :]) == said.token_ids
            ):
                tail, _ = self.codec.encode(messages, start=grown, for_generation=True)
                prompt = [*ids, *self.codec.end_ids, *tail]
                self._conversations[request.episode_id] = (messages, list(prompt))
                return prompt
        prompt, _ = self.codec.encode(messages, for_generation=True)
        self._conversations[request.episode_id] = (messages, list(prompt))
        return prompt

    def _generate(self, requests: Sequence[TurnRequest], rows: Sequence[Row]) -> None:
        for request, row, (said, stopped) in zip(requests, rows, self._generating.decode(rows), strict=True):
            self._conversations.pop(request.episode_id, None)
            turn = Turn(
                text=self.codec.decode(said),
                token_ids=tuple(said),
                num_prompt_tokens_read=len(row.prompt),
                num_sampled_tokens=len(said) + stopped,
            )
            self._answered.append((request.episode_id, turn))

    def _weights_version(self) -> int:
        parameters = getattr(self.model, "parameters", None)
        return 0 if parameters is None else sum(p._version for p in parameters() if not p.is_inference())

    def _forget_if_trained(self) -> None:
        """A live model may have been trained since: what was read with the old weights is of no use."""
        version = self._weights_version()
        if version != self._weights:
            self._weights = version
            if self._blocks is not None:
                self._blocks.forget_all()
