"""An agent over any engine: conversations become rows of token ids, completions become turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from steca_gym.agent import Message, Need, Turn, TurnRequest
from steca_gym.chat import ChatCodec
from steca_gym.errors import AgentError, StecaError

from .engines.base import Completion, Engine, Row


class EngineAgent:
    """Answers conversations with an engine.

    Sampled ids are kept with their turns, and the next prompt repeats them exactly. The request's seed and turn decide
    the sample, whatever else is in the batch.

    Args:
        engine: what decodes.
        codec: the chat template of the engine's model.
        name: what trajectories call the agent.
    """

    needs: frozenset[Need] = frozenset()

    def __init__(self, engine: Engine, codec: ChatCodec, *, name: str) -> None:
        """See the class."""
        self.engine = engine
        self.codec = codec
        self.tokenizer: Any = codec.tokenizer
        self.name = name
        self.force: Callable[[TurnRequest], Sequence[int] | None] | None = None
        """for measurements: ids to return instead of sampled ones; the model still runs"""
        self._conversations: dict[str, tuple[tuple[Message, ...], list[int]]] = {}
        self._asked: set[str] = set()
        self._refused: list[tuple[str, Turn | Exception]] = []

    @property
    def model_seconds(self) -> float:
        """Seconds spent in the model so far, sampling included."""
        return self.engine.model_seconds

    # -- Agent ---------------------------------------------------------------------------------------------

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request once, in order; raises AgentError if one cannot be answered."""
        if self._asked:
            raise AgentError("act() while submitted requests are in progress; poll() them first")
        self.submit(requests)
        turns: dict[str, Turn | Exception] = {}
        while self._asked:
            turns.update(self.poll())
        answers: list[Turn] = []
        for request in requests:
            turn = turns[request.episode_id]
            if not isinstance(turn, Turn):
                raise turn
            answers.append(turn)
        return answers

    def release(self, episode_ids: Iterable[str]) -> None:
        """Forget episodes. What was read for them may be reused until the place is needed."""
        gone = list(episode_ids)
        for episode_id in gone:
            self._conversations.pop(episode_id, None)
            self._asked.discard(episode_id)
        self._refused = [item for item in self._refused if item[0] not in gone]
        self.engine.release(gone)

    def forget(self) -> None:
        """Forget every episode and empty the engine's caches."""
        self._conversations.clear()
        self._asked.clear()
        self._refused.clear()
        self.engine.clear()

    def weights_changed(self) -> None:
        """Drop everything that was computed with the model's old weights.

        Call it after the weights of a shared model were changed in place. Turns in progress use the new weights;
        turns that are submitted afterwards equal those of a new agent.
        """
        self.engine.weights_changed()

    # -- StreamingAgent ------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Accept requests; at most one per episode may be in progress."""
        for request in requests:
            if request.episode_id in self._asked:
                raise AgentError(f"episode {request.episode_id!r} has a request under way already")
            self._asked.add(request.episode_id)
            sampling = request.sampling
            try:
                prompt = self._prompt(request)
            except StecaError as error:  # a conversation that the chat template cannot show
                self._refused.append((request.episode_id, error))
                continue
            row = Row(
                prompt=prompt,
                seed=request.seed,
                turn=request.turn,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_new_tokens,
                logprobs=sampling.logprobs,
                forced=None if self.force is None else self.force(request),
            )
            self.engine.submit(request.episode_id, row)

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """Work until at least one turn is ready; empty only if nothing is in progress."""
        turns, self._refused = self._refused, []
        if not turns:
            for episode_id, answer in self.engine.poll():
                turns.append((episode_id, self._turn(episode_id, answer) if isinstance(answer, Completion) else answer))
        self._asked.difference_update(episode_id for episode_id, _ in turns)
        return turns

    # -- inside --------------------------------------------------------------------------------------------

    def _turn(self, episode_id: str, completion: Completion) -> Turn:
        held = self._conversations.get(episode_id)
        if held is not None:
            held[1].extend(completion.tokens)
        return Turn(
            text=self.codec.decode(completion.tokens),
            token_ids=completion.tokens,
            num_prompt_tokens_read=completion.num_read,
            num_prompt_tokens_reused=completion.num_reused,
            num_sampled_tokens=completion.num_sampled,
            truncated=completion.truncated,
            log_probs=completion.log_probs,
            end_log_prob=completion.stop_log_prob,
        )

    def _prompt(self, request: TurnRequest) -> list[int]:
        """Ids of the whole conversation; of a known one only the new messages are tokenized."""
        held = self._conversations.get(request.episode_id)
        messages = request.messages
        if held is not None:
            before, ids = held
            grown = len(before) + 1
            turn = messages[len(before)] if len(messages) > grown else None
            if (
                turn is not None
                and turn.token_ids is not None
                and messages[: len(before)] == before
                and tuple(ids[len(ids) - len(turn.token_ids) :]) == turn.token_ids
                and self._is_repeated(turn)
            ):
                tail, _ = self.codec.encode(messages, start=grown, for_generation=True)
                prompt = [*ids, *self.codec.end_ids, *tail]
                self._conversations[request.episode_id] = (messages, list(prompt))
                return prompt
        prompt, _ = self.codec.encode(messages, for_generation=True)
        self._conversations[request.episode_id] = (messages, list(prompt))
        return prompt

    def _is_repeated(self, turn: Message) -> bool:
        """Whether the next prompt repeats this turn's ids; a template may drop the reasoning of earlier turns."""
        keeps: Callable[[Message], bool] | None = getattr(self.codec, "keeps", None)
        return keeps is None or keeps(turn)
