"""``agent=vllm`` over a stand-in of vLLM's documented interface: no GPU is here, and the page says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from steca_gym.agents.engines.vllm import VLLMEngine, sample_seed
from steca_gym.agents.transformers import TransformersAgent
from steca_gym.agents.vllm import VLLMAgent

from steca_gym.agent import Message, Sampling, TurnRequest
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import AgentError, CheckpointError, ConfigError
from steca_gym.testing import check_agent
from tests.agents import vllm_stand_in
from tests.fakes import corridor, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vllm") / "model"
    tiny_model(max_position_embeddings=8192).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "vllm", vllm_stand_in)
    return vllm_stand_in


def play(agent: Any, temperature: float, *, num_envs: int = 8) -> tuple[list[Any], Any]:
    sampling = Sampling(temperature=temperature, max_new_tokens=9)
    asked = [EpisodeRequest(task_id=f"corridor-{1 + i % 3}", seed=i, sampling=sampling) for i in range(5)]
    collector = Collector(corridor(horizon=4), agent, num_envs=num_envs)
    return [episode.trajectory for episode in collector.run(asked)], collector.ledger.total()


def test_greedy_turns_and_their_log_probabilities_are_those_of_transformers(stand_in: Any, folder: Path) -> None:
    ours, reference = VLLMAgent(folder), TransformersAgent(folder, engine="generate")
    served, cost = play(ours, 0.0)
    plain, whole = play(reference, 0.0)
    assert [t.steps for t in served] == [t.steps for t in plain]
    asked = [request("a", logprobs=True), request("b", logprobs=True, max_new_tokens=40)]
    for own, other in zip(ours.act(asked), reference.act(asked), strict=True):
        assert own.token_ids == other.token_ids and own.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert own.truncated == other.truncated and own.end_log_prob == pytest.approx(other.end_log_prob, abs=1e-4)
    assert cost.num_sampled_tokens == whole.num_sampled_tokens
    # Histories are in vLLM's prefix cache, and the ledger says so.
    assert cost.num_prompt_tokens_read + cost.num_prompt_tokens_reused == whole.num_prompt_tokens_read
    assert 2 * cost.num_prompt_tokens_reused > whole.num_prompt_tokens_read


def test_a_sample_follows_from_its_seed_and_turn(stand_in: Any, folder: Path) -> None:
    together, _ = play(VLLMAgent(folder), 1.0)
    alone, _ = play(VLLMAgent(folder, max_batch_size=1), 1.0, num_envs=1)
    assert together == alone


@pytest.mark.slow
def test_it_conforms(stand_in: Any, folder: Path) -> None:
    check_agent(lambda: VLLMAgent(folder)).raise_if_failed()


def request(episode_id: str = "e", **sampling: Any) -> TurnRequest:
    messages = (Message(role="user", content="go"),)
    given = Sampling(**{"temperature": 0.0, "max_new_tokens": 4, **sampling})
    return TurnRequest(episode_id=episode_id, messages=messages, seed=0, turn=0, sampling=given)


def test_rows_that_are_let_go_leave_vllm(stand_in: Any, folder: Path) -> None:
    agent = VLLMAgent(folder)
    agent.submit([request("a"), request("b")])
    assert isinstance(agent.engine, VLLMEngine)
    assert len(agent.engine.engine.requests) == 2
    agent.release(["a"])
    assert len(agent.engine.engine.requests) == 1
    assert [key for key, _ in agent.poll()] == ["b"]
    agent.forget()
    assert agent.engine.engine.requests == {} and agent.engine.engine.cached == set()


def test_a_row_that_is_too_long_fails_alone(stand_in: Any, folder: Path) -> None:
    agent = VLLMAgent(folder, max_length=24)
    agent.submit([request("long", max_new_tokens=100), request("short")])
    turns = dict([*agent.poll(), *agent.poll()])
    assert isinstance(turns["long"], AgentError) and "vLLM (max_model_len) can hold" in str(turns["long"])
    assert not isinstance(turns["short"], Exception)


def test_an_engine_that_stops_ends_every_row_in_one_line(stand_in: Any, folder: Path) -> None:
    agent = VLLMAgent(folder)
    agent.submit([request("a"), request("b")])
    assert isinstance(agent.engine, VLLMEngine)
    agent.engine.engine.broken = RuntimeError("CUDA out of\nmemory")
    turns = dict(agent.poll())
    assert {key: str(error) for key, error in turns.items()} == dict.fromkeys(
        ("a", "b"), "vLLM stopped: RuntimeError: CUDA out of memory"
    )
    assert agent.poll() == []


def test_seeds_are_vllms() -> None:
    from steca_gym.agents.engines.base import Row

    def seed(number: int, turn: int) -> int:
        row = Row(prompt=[1], seed=number, turn=turn, temperature=1.0, top_p=1.0, max_new_tokens=1)
        return sample_seed(row)

    seeds = {seed(n, t) for n in range(50) for t in range(20)}
    assert len(seeds) == 1000 and all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"max_batch_size": 0}, "max_batch_size must be >= 1"),
        ({"max_length": 1}, "max_length must be >= 2"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must lie in"),
        ({"engine_args": {"max_num_seqs": 3}}, "engine_args names max_num_seqs"),
        ({"engine_args": {"trust_remote_code": True}}, "trust_remote_code runs code"),
        ({"engine_args": {"tensor_paralel_size": 2}}, "vLLM refuses its settings"),
        ({"engine_args": {"tensor_parallel_size": 0}}, "vLLM refuses its settings"),
    ],
)
def test_settings_that_cannot_work_are_one_line(stand_in: Any, folder: Path, settings: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        VLLMAgent(folder, **settings)
    assert "\n" not in str(caught.value)


def test_no_model_is_one_line(stand_in: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        VLLMAgent(tmp_path / "none")


@pytest.mark.skipif("vllm" in sys.modules, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'steca-gym\[vllm\]'"):
        VLLMAgent(folder)
