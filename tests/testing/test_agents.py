"""The kit for agents: every agent of ours passes, and each planted fault is found."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from steca_gym.agents.openai import Endpoint, EndpointSettings, OpenAIAgent
from steca_gym.agents.scripted import ExpertAgent, RandomAgent, ReplayAgent
from steca_gym.agents.transformers import TransformersAgent

from steca_gym.agent import Message, Turn, TurnRequest, is_clairvoyant
from steca_gym.errors import AgentError
from steca_gym.testing import AgentCheckSettings, check_agent
from steca_gym.testing.agents import FIRST_OBSERVATIONS
from tests.agents.test_openai import Server, running
from tests.fakes import FakeAgent, StreamingFakeAgent, tiny_model, tiny_tokenizer


def too_long(request: TurnRequest) -> TurnRequest:
    return TurnRequest(
        episode_id=request.episode_id,
        messages=(Message("user", "x " * 5000),),
        seed=0,
        turn=0,
        sampling=request.sampling,
    )


def unknown(request: TurnRequest) -> TurnRequest:
    return TurnRequest(episode_id=request.episode_id, messages=(Message("user", "Elsewhere."),), seed=0, turn=0)


def test_the_expert_conforms() -> None:
    check_agent(ExpertAgent).raise_if_failed()
    assert is_clairvoyant(ExpertAgent()) and not is_clairvoyant(RandomAgent()) and not is_clairvoyant(object())


def test_the_random_agent_conforms() -> None:
    check_agent(RandomAgent).raise_if_failed()


def test_a_replay_conforms() -> None:
    recordings = {first: [f"look at {i}" for i in range(40)] for first in FIRST_OBSERVATIONS}
    settings = AgentCheckSettings(bad_request=unknown)
    check_agent(lambda: ReplayAgent.from_mapping(recordings), settings=settings).raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["blocks", "generate"])
def test_a_language_model_conforms(engine: Any) -> None:
    model, tokenizer = tiny_model(num_layers=1, hidden_size=32, max_position_embeddings=4096), tiny_tokenizer()
    settings = AgentCheckSettings(bad_request=too_long if engine == "blocks" else None, num_turns=8)
    check_agent(
        lambda: TransformersAgent(model, tokenizer=tokenizer, engine=engine), settings=settings
    ).raise_if_failed()


def test_an_endpoint_conforms() -> None:
    class Answering(Server):
        def answer(self, body: dict[str, Any]) -> str:
            return f"Action: {hash(json.dumps(body['messages'])) % 1000} {body['seed']}"

    class Choosy(Answering):
        def plan(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]] | None:
            return (400, b"no such place", {}) if body["messages"][0]["content"] == "Elsewhere." else None

    with running(Choosy) as server:
        endpoint = Endpoint(EndpointSettings(base_url=server.url, model="m"))
        settings = AgentCheckSettings(bad_request=unknown, num_turns=6, batch_sizes=(1, 5))
        check_agent(lambda: OpenAIAgent(endpoint=endpoint), settings=settings).raise_if_failed()


# -- planted faults ---------------------------------------------------------------------------------------------


def say(request: TurnRequest) -> str:
    return f"Action: {request.seed} {request.turn} {len(request.messages[-1].content)}"


class Good(FakeAgent):
    def __init__(self) -> None:
        super().__init__(say)


class TooFew(Good):
    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return super().act(requests)[:1]


class Shuffled(Good):
    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return super().act(requests)[::-1]


class Texts(Good):
    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return [turn.text for turn in super().act(requests)]  # type: ignore[misc]


class Counting(Good):
    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        return [Turn(text=t.text, num_sampled_tokens="5") for t in super().act(requests)]  # type: ignore[arg-type]


class Global(Good):
    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        random.random()
        return super().act(requests)


class Remembering(Good):
    """Counts turns by episode instead of reading the request."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def _turn(self, request: TurnRequest) -> Turn:
        count = self.seen[request.episode_id] = self.seen.get(request.episode_id, -1) + 1
        return Turn(text=f"{count}")

    def release(self, episode_ids: Iterable[str]) -> None:
        list(episode_ids)


class Ascii(Good):
    def _turn(self, request: TurnRequest) -> Turn:
        request.messages[-1].content.encode("ascii")
        return super()._turn(request)


class Chatty(Good):
    def _turn(self, request: TurnRequest) -> Turn:
        return Turn(text="x", token_ids=(1,) * 9, num_sampled_tokens=9)


class Forgetful(Good):
    def release(self, episode_ids: Iterable[str]) -> None:
        raise KeyError(next(iter(episode_ids), "none"))


class Unnamed(Good):
    name = ""


class Twice(StreamingFakeAgent):
    def __init__(self) -> None:
        super().__init__(say)

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        return 2 * super().poll()


class Deaf(StreamingFakeAgent):
    """Ignores release()."""

    def __init__(self) -> None:
        super().__init__(say)


class Stack(Good):
    def _turn(self, request: TurnRequest) -> Turn:
        if request.messages[0].content == "Elsewhere.":
            raise ValueError("boom")
        return super()._turn(request)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (TooFew, "batches"),
        (Shuffled, "order"),
        (Texts, "batches"),
        (Counting, "batches"),
        (Global, "random state"),
        (Remembering, "long conversation"),
        (Ascii, "unicode"),
        (Chatty, "token limit"),
        (Forgetful, "empty batch"),
        (Unnamed, "attributes"),
        (Twice, "streaming"),
        (Deaf, "streaming"),
        (Stack, "bad request"),
    ],
)
def test_a_planted_fault_is_found(kind: Any, check: str) -> None:
    report = check_agent(kind, settings=AgentCheckSettings(bad_request=unknown))
    assert check in [result.name for result in report.failed], list(report.lines())
    with pytest.raises(AgentError, match=f"{check}: failed"):
        report.raise_if_failed()


def test_what_is_not_there_is_skipped_and_what_is_no_agent_fails() -> None:
    report = check_agent(Good)
    assert report.ok and {r.name for r in report.results if r.status == "skipped"} == {
        "token limit",
        "streaming",
        "bad request",
    }
    assert [r.name for r in check_agent(object).results] == ["attributes"]  # type: ignore[arg-type]
    assert "no recordings at" in check_agent(lambda: ReplayAgent.from_file(Path("/nowhere")))["make"].detail


def test_texts_in_square_brackets_are_shown_as_they_are() -> None:
    class Bracketed(Good):
        name = "[/INST]"

        def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
            raise AgentError("[/INST] broke")

    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(check_agent(Bracketed).table())
    assert "[/INST] broke" in console.export_text()
