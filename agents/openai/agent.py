"""An agent whose turns are written by a chat endpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from steca_gym.agents.openai.answers import Completion
from steca_gym.agents.openai.endpoint import WAKE_S, Endpoint, make_endpoint

from steca_gym.agent import Message, Need, Turn, TurnFormat, TurnRequest, find_turn_format
from steca_gym.errors import AgentError
from steca_gym.turns import schema_of, split_calls, tools_of


class OpenAIAgent:
    """An agent behind an endpoint.

    Turns are returned one by one (``submit``, ``poll``), so that ``max_in_flight`` requests are at the server whenever
    that many wait. Requests that continue one fork are sent next to each other, and an episode's conversation only
    grows, so a server's prefix cache can serve both. The server tokenises texts itself; whether it takes control tokens
    in them literally is up to the server.

    With a turn format that calls functions (``tools``), requests list the functions, and the history holds tool calls
    and their results. With one that has a schema (``json``), the server is asked to keep to it, and a server that
    refuses that is asked without.

    Where the server tells the sampled ids (vLLM does, asked with ``return_token_ids``), turns hold them, so that
    training samples are what was sampled; with ``Sampling.logprobs`` also their log-probabilities. The ids belong to
    the server's model: train that model, with its tokenizer.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000/v1``.
        model: the name by which the server knows the model.
        endpoint: an Endpoint instead of the two.
        turn_format: how turns are written: "react" (default), "tools", "json", "xml" or ``module:Object``.
        options: further fields of EndpointSettings.
    """

    needs: frozenset[Need] = frozenset()
    is_clairvoyant = False

    def __init__(
        self,
        base_url: str = "",
        model: str = "",
        *,
        endpoint: Endpoint | None = None,
        turn_format: str | TurnFormat | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        self._format = find_turn_format(turn_format)
        self.endpoint = make_endpoint(base_url, model, endpoint, options)
        self.name = f"openai:{self.endpoint.settings.model}"
        self._waiting: list[TurnRequest] = []
        self._in_flight: dict[Future[Completion], str] = {}
        self._gone: set[Future[Completion]] = set()
        self._last_fork: str | None = None

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Answer each request, in order; raises AgentError where one cannot be answered."""
        if self._waiting or self._in_flight:
            raise AgentError("act() while submitted requests are in progress; poll() them first")
        self.submit(requests)
        turns: dict[str, Turn | Exception] = {}
        while len(turns) < len(requests):
            turns.update(self.poll())
        answers = [turns[request.episode_id] for request in requests]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer for answer in answers if isinstance(answer, Turn)]

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Accept requests; at most one per episode may be in progress."""
        in_progress = {*self._in_flight.values(), *(request.episode_id for request in self._waiting)}
        for request in requests:
            if request.episode_id in in_progress:
                raise AgentError(f"episode {request.episode_id!r} has a request in progress already")
            in_progress.add(request.episode_id)
        self._waiting.extend(requests)
        self._send()

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """Wait until at least one answer has arrived; empty only when nothing is in progress."""
        while self._waiting or self._in_flight:
            self._send()
            try:
                done: set[Future[Completion]] = set()
                while not done:
                    done = wait((*self._in_flight, *self._gone), timeout=WAKE_S, return_when=FIRST_COMPLETED).done
            except BaseException:  # Ctrl-C: nothing waits for the server any longer
                for future in (*self._in_flight, *self._gone):
                    future.cancel()
                self._waiting.clear()
                self._in_flight.clear()
                self._gone.clear()
                raise
            self._gone -= done
            answers: list[tuple[str, Turn | Exception]] = []
            for future in [future for future in self._in_flight if future in done]:
                episode_id = self._in_flight.pop(future)
                error = future.exception()
                if error is None:
                    answers.append((episode_id, _turn(future.result())))
                elif isinstance(error, Exception):
                    answers.append((episode_id, error))
                else:
                    raise error
            if answers:
                self._send()
                return answers
        return []

    def release(self, episode_ids: Iterable[str]) -> None:
        """Drop the waiting requests of these episodes; an answer in progress is not returned."""
        gone = set(episode_ids)
        self._waiting = [request for request in self._waiting if request.episode_id not in gone]
        for future in [future for future, episode_id in self._in_flight.items() if episode_id in gone]:
            del self._in_flight[future]
            self._gone.add(future)

    def _send(self) -> None:
        """Send as many requests as allowed, first those that continue the fork of the last one sent."""
        while self._waiting and len(self._in_flight) + len(self._gone) < self.endpoint.settings.max_in_flight:
            index = 0
            if self._last_fork is not None:
                alike = (i for i, request in enumerate(self._waiting) if request.fork_of == self._last_fork)
                index = next(alike, 0)
            request = self._waiting.pop(index)
            self._last_fork = request.fork_of
            # The seed changes from turn to turn: the same one would sample the same words again.
            seed = (request.seed + request.turn) & 0x7FFF_FFFF
            future = self.endpoint.start(self._messages(request), request.sampling, seed, **self._fields(request))
            self._in_flight[future] = request.episode_id

    def _messages(self, request: TurnRequest) -> Sequence[Message | Mapping[str, Any]]:
        """The conversation as the server gets it."""
        return as_tool_calls(request.messages) if tools_of(self._format) else request.messages

    def _fields(self, request: TurnRequest) -> dict[str, dict[str, Any]]:
        """The request's fields beside the usual ones: those of the turn format, and those that tell tokens."""
        optional: dict[str, Any] = {}
        if self.endpoint.settings.return_token_ids:
            optional["return_token_ids"] = True
            if request.sampling.logprobs:
                optional["logprobs"] = True
        if (schema := schema_of(self._format)) is not None:
            described = {"name": "turn", "strict": True, "schema": schema}
            optional["response_format"] = {"type": "json_schema", "json_schema": described}
        tools = tools_of(self._format)
        if tools:
            optional["parallel_tool_calls"] = False
        return {"extra": {"tools": list(tools)} if tools else {}, "optional": optional}


def as_tool_calls(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation in which turns that are one call become tool calls, and the observations after them results."""
    sent: list[dict[str, Any]] = []
    answered = ""
    for index, message in enumerate(messages):
        found = split_calls(message.content) if message.role == "assistant" else None
        if found is not None and len(found[1]) == 1:
            content, ((name, arguments),) = found
            answered = f"call{index:05d}"  # nine letters and digits, as Mistral's templates ask
            function = {"name": name, "arguments": arguments}
            call = {"id": answered, "type": "function", "function": function}
            sent.append({"role": "assistant", "content": content, "tool_calls": [call]})
        elif message.role == "user" and answered:
            sent.append({"role": "tool", "tool_call_id": answered, "content": message.content})
            answered = ""
        else:
            sent.append(dict(message.as_dict()))
            answered = ""
    return sent


def _turn(completion: Completion) -> Turn:
    return Turn(
        text=completion.text,
        token_ids=completion.token_ids,
        log_probs=completion.log_probs,
        end_log_prob=completion.end_log_prob,
        num_prompt_tokens_read=max(completion.num_prompt_tokens - completion.num_cached_tokens, 0),
        num_prompt_tokens_reused=completion.num_cached_tokens,
        num_sampled_tokens=completion.num_sampled_tokens,
        truncated=completion.truncated,
    )
