"""Online methods: advantages on cases computed by hand, the critic, and runs that are killed and resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steca_gym.agent import Prompt
from steca_gym.collectors.episodes import Episode, EpisodeRequest, Fork
from steca_gym.env import Outcome, Snapshot
from steca_gym.errors import CheckpointError, ConfigError, UnknownNameError
from steca_gym.methods.gigpo import AnchoredAdvantages, GiGPO, anchored_values
from steca_gym.methods.grpo import GRPO, OutcomeAdvantages, relative_values
from steca_gym.methods.online import RolloutConfig, TaskOrder, discounted_returns, rewards_of
from steca_gym.methods.ppo import CriticConfig, TurnCritic, explained_variance, gae, hidden_states, standardized
from steca_gym.trajectory import Step, Trajectory
from tests.fakes import tiny_model, tiny_tokenizer
from tests.methods.playing import play

Anything: Any = None
SMALL = ["method.rollout.num_steps=2", "method.rollout.num_tasks=2", "method.rollout.save_every_steps=1"]


def trajectory(*observations: str, score: float, scores: tuple[float, ...] = ()) -> Trajectory:
    """An episode whose states read ``observations``; the last step's observation is "end"."""
    after = [*observations[1:], "end"]
    each = scores or (0.0,) * (len(after) - 1) + (score,)
    steps = tuple(Step(action="a", observation=o, score=s) for o, s in zip(after, each, strict=True))
    return Trajectory(task_id="t", first_observation=observations[0], steps=steps, score=score, won=score == 1)


def episode(played: Trajectory, keys: tuple[Any, ...] = ()) -> Episode:
    snapshot = Snapshot("w", "t", 0, 0, Outcome(observation=""), None, ())
    forks = tuple(Fork(fork_id=str(i), snapshot=snapshot, prefix=played, state_key=k) for i, k in enumerate(keys))
    return Episode(request=EpisodeRequest(task_id="t", seed=0), trajectory=played, forks=forks)


# -- rewards and returns --------------------------------------------------------------------------------------------


def test_rewards_are_changes_of_the_score() -> None:
    played = trajectory("s", "u", "v", score=0.75, scores=(0.25, 0.0, 0.75))
    assert rewards_of(played) == [0.25, -0.25, 0.75]
    assert discounted_returns([0.25, -0.25, 0.75], 0.5) == [0.3125, 0.125, 0.75]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_rewards_add_up_to_the_outcome(scores: list[float]) -> None:
    played = trajectory(*map(str, range(len(scores))), score=scores[-1], scores=tuple(scores))
    assert math.isclose(sum(rewards_of(played)), played.score, abs_tol=1e-12)


def test_each_epoch_plays_every_task_once() -> None:
    order = TaskOrder(["a", "b", "c"], seed=5)
    assert sorted(order.take(0, 3)) == sorted(order.take(3, 3)) == ["a", "b", "c"]
    assert order.take(0, 7) == order.take(0, 4) + order.take(4, 3)
    assert TaskOrder(["a", "b", "c"], seed=5).take(0, 6) == order.take(0, 6)


# -- GRPO -----------------------------------------------------------------------------------------------------------


def test_grpo_by_hand() -> None:
    # Mean 0.5, population standard deviation 0.5.
    assert relative_values([1, 1, 0, 0], "mean", normalize=True) == pytest.approx([1, 1, -1, -1], abs=1e-5)
    assert relative_values([1, 1, 0, 0], "mean", normalize=False) == [0.5, 0.5, -0.5, -0.5]
    # Each against the mean of the other three: 1 - 1/3 and 0 - 2/3.
    expected = [2 / 3, 2 / 3, -2 / 3, -2 / 3]
    assert relative_values([1, 1, 0, 0], "leave_one_out", normalize=False) == pytest.approx(expected)
    assert relative_values([1], "leave_one_out", normalize=False) == [0.0]
    assert relative_values([1, 1], "mean", normalize=True) == [0.0, 0.0]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_leaving_one_out_is_the_mean_of_the_others(values: list[float]) -> None:
    expected = [v - sum(values[:i] + values[i + 1 :]) / (len(values) - 1) for i, v in enumerate(values)]
    assert relative_values(values, "leave_one_out", normalize=False) == pytest.approx(expected, abs=1e-9)


def test_every_turn_of_an_episode_has_its_advantage() -> None:
    group = [episode(trajectory("s", "u", score=1.0)), episode(trajectory("s", score=0.0))]
    (made,) = OutcomeAdvantages(baseline="leave_one_out", normalize=False)([group], Anything)
    assert made.advantages == ((1.0, 1.0), (-1.0,))


# -- GiGPO ----------------------------------------------------------------------------------------------------------


def test_gigpo_by_hand() -> None:
    # Three episodes pass state "u"; two of them win, one of these a turn later.
    group = [
        episode(trajectory("s", "u", score=1.0)),
        episode(trajectory("s", "u", "v", score=1.0)),
        episode(trajectory("s", "u", score=0.0)),
    ]
    advantages = AnchoredAdvantages(
        anchor="observation", baseline="leave_one_out", normalize=False, step_weight=2.0, gamma=0.5
    )
    (made,) = advantages([group], Anything)
    # Episodes: 1 - 1/2, 1 - 1/2, 0 - 1. Returns in "s": 1/2, 1/4, 0; in "u": 1, 1/2, 0; "v" was visited once.
    in_s = [1 / 2 - 1 / 8, 1 / 4 - 1 / 4, 0 - 3 / 8]
    in_u = [1 - 1 / 4, 1 / 2 - 1 / 2, 0 - 3 / 4]
    assert made.advantages[0] == pytest.approx((0.5 + 2 * in_s[0], 0.5 + 2 * in_u[0]))
    assert made.advantages[1] == pytest.approx((0.5 + 2 * in_s[1], 0.5 + 2 * in_u[1], 0.5))
    assert made.advantages[2] == pytest.approx((-1 + 2 * in_s[2], -1 + 2 * in_u[2]))


def test_a_turn_is_never_compared_with_its_own_episode() -> None:
    # The first episode comes back to "s": its second return depends on what it did at first.
    keys = [["s", "s"], ["s"]]
    assert anchored_values(keys, [[0.5, 1.0], [0.0]], "leave_one_out", normalize=False) == [[0.5, 1.0], [-0.75]]
    assert anchored_values([["s", "s"], ["u"]], [[0.5, 1.0], [0.0]], "leave_one_out", normalize=False) == [
        [0.0, 0.0],
        [0.0],
    ]
    # The paper's form compares all turns of the state.
    assert anchored_values(keys, [[0.5, 1.0], [0.0]], "mean", normalize=False) == [[0.0, 0.5], [-0.5]]


def test_state_keys_tell_apart_what_looks_alike() -> None:
    def made(anchor: Any) -> Any:
        group = [
            episode(trajectory("s", "dark", score=1.0), keys=(0, 1, 9)),
            episode(trajectory("s", "dark", score=0.0), keys=(0, 2, 9)),
        ]
        advantages = AnchoredAdvantages(
            anchor=anchor, baseline="leave_one_out", normalize=False, step_weight=1.0, gamma=1.0
        )
        return advantages([group], Anything)[0].advantages

    assert made("observation") == ((2.0, 2.0), (-2.0, -2.0))
    assert made("state_key") == ((2.0, 1.0), (-2.0, -1.0))


def test_a_world_without_state_keys_is_one_line() -> None:
    advantages = AnchoredAdvantages(anchor="state_key", baseline="mean", normalize=False, step_weight=1.0, gamma=1.0)
    group = [episode(trajectory("s", score=1.0), keys=(None, None))]
    with pytest.raises(ConfigError, match="anchor=state_key needs a world that tells its state"):
        advantages([group], Anything)


# -- PPO ------------------------------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    # Deltas: 0 + 0.5 * 0.6 - 0.4 = -0.1 and 1 + 0 - 0.6 = 0.4; the first has half of half of the second added.
    assert gae([0.0, 1.0], [0.4, 0.6], 0.5, 0.5) == pytest.approx([-0.1 + 0.25 * 0.4, 0.4])


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_gae_at_lambda_one_is_the_return_minus_the_value(turns: list[tuple[float, float]]) -> None:
    rewards, values = [r for r, _ in turns], [v for _, v in turns]
    expected = [r - v for r, v in zip(discounted_returns(rewards, 0.9), values, strict=True)]
    assert gae(rewards, values, 0.9, 1.0) == pytest.approx(expected, abs=1e-9)


def test_standardized_advantages() -> None:
    assert standardized([[1.0, 3.0], [2.0, 2.0]]) == [
        pytest.approx([-math.sqrt(2), math.sqrt(2)], abs=1e-4),
        [0.0, 0.0],
    ]
    assert standardized([[0.5], [0.5]]) == [[0.0], [0.0]]


def test_the_critic_learns_what_is_linear_and_forgets_old_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    critic = TurnCritic(window=2, penalty=1e-6)
    hidden = rng.normal(size=(200, 6))
    assert critic.values(hidden).tolist() == [0.0] * 200
    scale = np.sqrt(np.mean(hidden**2, axis=1, keepdims=True))
    returns = np.clip(0.5 + 0.1 * (hidden / scale)[:, 0], 0, 1)
    critic.add(hidden, np.zeros(200))  # an old step with other returns
    critic.add(hidden, returns)
    assert explained_variance([critic.values(hidden)], [returns.tolist()]) < 0.99
    critic.add(hidden, returns)  # now the window holds these only
    assert np.allclose(critic.values(hidden), returns, atol=1e-4)
    critic.save(tmp_path / "critic-3.npz")
    again = TurnCritic(window=2, penalty=1e-6)
    again.restore(tmp_path / "critic-3.npz")
    assert np.array_equal(again.values(hidden), critic.values(hidden))
    (tmp_path / "critic-3.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(CheckpointError, match="cannot read the critic"):
        again.restore(tmp_path / "critic-3.npz")


def test_explained_variance() -> None:
    assert explained_variance([np.array([0.0, 1.0])], [[0.0, 1.0]]) == 1.0
    assert explained_variance([np.array([0.5, 0.5])], [[0.0, 1.0]]) == 0.0
    assert explained_variance([np.array([0.3])], [[1.0]]) == 0.0


class TinyAgent:
    model = tiny_model(num_layers=1, hidden_size=32)
    tokenizer = tiny_tokenizer()


def test_hidden_states_are_those_before_each_turn() -> None:
    import torch

    prompt = Prompt(instruction="Walk.")
    long, short = trajectory("room 1", "room 2", "room 3", score=1.0), trajectory("room 9", score=0.0)
    together = hidden_states(TinyAgent, prompt, [long, short], batch_size=2)
    assert [h.shape for h in together] == [(3, 32), (1, 32)]
    alone = hidden_states(TinyAgent, prompt, [long], batch_size=1)
    assert np.allclose(together[0], alone[0], atol=1e-5)
    # An oracle: the prompt that the agent was given before its second turn, read as it is.
    messages = [m.as_dict() for m in long.messages(prompt)[:4]]
    text = TinyAgent.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = TinyAgent.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        last = TinyAgent.model.base_model(input_ids=torch.tensor([ids]))[0][0, -1]
    assert np.allclose(alone[0][1], last.numpy(), atol=1e-5)


# -- settings and runs ----------------------------------------------------------------------------------------------


def test_settings_that_cannot_work() -> None:
    one = RolloutConfig(group_size=1)
    for make, error, words in (
        (lambda: GRPO.Config(rollout=one), ConfigError, "group_size must be >= 2"),
        (lambda: GRPO.Config(baseline="median"), UnknownNameError, "no baseline 'median'"),  # type: ignore[arg-type]
        (lambda: GiGPO.Config(anchor="text"), UnknownNameError, "no anchor 'text'"),  # type: ignore[arg-type]
        (lambda: GiGPO.Config(gamma=0.0), ConfigError, r"gamma must lie in \(0, 1\]"),
        (lambda: CriticConfig(window=0), ConfigError, "window must be >= 1"),
        (lambda: RolloutConfig(temperature=0.0), ConfigError, "temperature must be > 0"),
    ):
        with pytest.raises(error, match=words):
            make()


@pytest.mark.slow
def test_a_run_of_gigpo(tmp_path: Path) -> None:
    stages = play(tmp_path, "gigpo", *SMALL, "method.rollout.group_size=2", "method.anchor=state_key")
    assert list(stages) == ["demonstrations", "warm_up", "online"]
    assert stages["online"]["num_steps"] == 2 and stages["online"]["num_episodes"] == 8
    curve = json.loads((tmp_path / "online.curve.json").read_text())["steps"]
    assert len(curve) == 2 and all(0 <= m["success_rate"] <= 1 and m["num_episodes"] == 4 for m in curve)
    # The trained model is a folder that the evaluation has read.
    assert (tmp_path / "model" / "model.safetensors").exists() and (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steca_gym.training import PolicyGradient

    settings = [*SMALL, "method.rollout.num_steps=3", "method.rollout.group_size=2", "until=online"]
    whole = play(tmp_path / "whole", "ppo", *settings)["online"]
    save, saved = PolicyGradient.save, []

    def killed(self: PolicyGradient, out: Path) -> None:
        # After the critic of the second step was written, before its weights.
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(out)
        save(self, out)

    monkeypatch.setattr(PolicyGradient, "save", killed)
    # The first attempt had other settings: what it saved is not resumed.
    with pytest.raises(AssertionError):
        play(tmp_path / "killed", "ppo", *settings, "method.rollout.temperature=0.5")
    saved.clear()
    with pytest.raises(AssertionError):
        play(tmp_path / "killed", "ppo", *settings)
    # As after a kill between the two renames of a save: what is beside is resumed, and tidied up at the end.
    (tmp_path / "killed" / "model").replace(tmp_path / "killed" / ".model.old")
    restored: list[int] = []
    restore = PolicyGradient.restore

    def noted(self: PolicyGradient, path: Path) -> None:
        restore(self, path)
        restored.append(self.num_steps)

    monkeypatch.setattr(PolicyGradient, "save", save)
    monkeypatch.setattr(PolicyGradient, "restore", noted)
    resumed = play(tmp_path / "killed", "ppo", *settings)["online"]
    assert restored == [1] and not list((tmp_path / "killed").glob(".model.*"))
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    curves = [json.loads((tmp_path / name / "online.curve.json").read_text())["steps"] for name in ("whole", "killed")]
    assert curves[0] == curves[1] and len(curves[0]) == 3 and "explained_variance" in curves[0][0]
    assert resumed == whole
