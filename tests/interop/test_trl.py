"""TRL's GRPOTrainer over our worlds: rollouts of the collector, and its own tool loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the llm extra")
import torch
from trl import GRPOConfig, GRPOTrainer

from steca_gym.agent import Message, Prompt
from steca_gym.errors import ConfigError, DataError
from steca_gym.interop.trl import TRLTask
from tests.fakes import tiny_model, tiny_tokenizer
from tests.interop.worlds import CORRIDOR

PROMPT = Prompt(instruction="Walk.", examples=(Message("user", "A door."), Message("assistant", "Action: open")))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def settings(folder: Path, **changes: Any) -> GRPOConfig:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "max_completion_length": 256,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 1,
    }
    return GRPOConfig(**{**given, **changes})


def num_sampled(prompts: Any, completions: Any, num_steps: Any, completion_ids: Any, **_: Any) -> list[float]:
    return [len(set(ids)) / 100 for ids in completion_ids]


def make(folder: Path, task: TRLTask, reward: Any = num_sampled, **changes: Any) -> GRPOTrainer:
    return GRPOTrainer(
        tiny_model(),
        reward_funcs=[reward, task.outcome_reward],
        args=settings(folder, **changes),
        processing_class=tiny_tokenizer(),
        train_dataset=task.dataset(4),
        rollout_func=task.rollout,
    )


def make_task(**kwargs: Any) -> TRLTask:
    return TRLTask(CORRIDOR, prompt=PROMPT, max_new_tokens=8, horizon=3, **kwargs)


def test_a_short_training_changes_the_weights_and_logs_both_rewards(tmp_path: Path) -> None:
    trainer = make(tmp_path, make_task())
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    log = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert log["rewards/num_sampled/mean"] > 0 and log["rewards/outcome_reward/mean"] >= 0
    assert log["completions/mean_length"] <= 3 * 9  # observations are masked and not counted


def test_without_differences_in_reward_nothing_is_trained(tmp_path: Path) -> None:
    trainer = make(tmp_path, make_task(), reward=lambda completions, **_: [0.5] * len(completions))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_rollout_holds_the_sampled_ids_their_mask_and_the_models_own_log_probabilities(tmp_path: Path) -> None:
    task = make_task()
    trainer = make(tmp_path, task)
    prompts = [row["prompt"] for row in task.dataset(2) for _ in range(3)]
    made = task.rollout(prompts, trainer)
    assert made["task_id"] == [p[-1]["task_id"] for p in prompts] and len(set(made["task_id"])) == 2
    tokenizer = trainer.processing_class
    for number, prompt in enumerate(prompts):
        head, tail = made["prompt_ids"][number], made["completion_ids"][number]
        mask, log_probs = made["env_mask"][number], made["logprobs"][number]
        shown = [{"role": m["role"], "content": m["content"]} for m in prompt]
        assert head == tokenizer.apply_chat_template(shown, add_generation_prompt=True, return_dict=False)
        assert len(tail) == len(mask) == len(log_probs) and mask[-1] == 1
        assert any(m == 0 for m in mask) and all(p == 0.0 for p, m in zip(log_probs, mask, strict=True) if not m)
        with torch.no_grad():
            logits = trainer.model(torch.tensor([[*head, *tail]])).logits[0, len(head) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tail)[:, None])[:, 0]
        trained = torch.tensor(mask, dtype=torch.bool)
        torch.testing.assert_close(torch.tensor(log_probs)[trained], expected[trained], atol=1e-4, rtol=1e-4)
    # One world for a group, other samples for each of its episodes; another call draws again, equal calls are equal.
    texts = [tokenizer.decode(ids) for ids in made["completion_ids"]]
    assert len(set(texts)) > 2
    again = make_task()
    assert again.rollout(prompts, make(tmp_path, again))["completion_ids"] == made["completion_ids"]
    assert task.rollout(prompts, trainer)["completion_ids"] != made["completion_ids"]


def test_other_samplings_give_no_log_probabilities(tmp_path: Path) -> None:
    task = make_task()
    trainer = make(tmp_path, task, temperature=0.7)
    assert task.rollout([task.dataset(1)[0]["prompt"]] * 2, trainer)["logprobs"] is None


def test_a_group_starts_from_one_state_and_reads_its_prompt_once(tmp_path: Path) -> None:
    task = make_task()
    trainer = make(tmp_path, task)
    made = task.rollout([task.dataset(1)[0]["prompt"]] * 4, trainer)
    cost = task._collector.ledger.total()  # type: ignore[union-attr]
    # Three of the four first turns read the prompt from the cache, but for its last blocks; so do all later turns.
    first_turns = 3 * (len(made["prompt_ids"][0]) - 32)
    later_turns = sum(len(ids) for ids in made["prompt_ids"]) - 4 * 32
    assert cost.num_prompt_tokens_reused >= first_turns + later_turns


def test_a_foreign_prompt_is_one_line(tmp_path: Path) -> None:
    task = make_task()
    trainer = make(tmp_path, task)
    with pytest.raises(DataError, match="names no task"):
        task.rollout([[{"role": "user", "content": "hello"}]], trainer)
    with pytest.raises(ConfigError, match="first observation"):
        task.rollout([[{"role": "user", "content": "hello", "task_id": "corridor-1"}]], trainer)
    with pytest.raises(ConfigError, match="num_tasks"):
        task.dataset(99)
    with pytest.raises(ConfigError, match="rollout_func"):
        task.outcome_reward([1], [1])


# -- TRL's own tool loop ------------------------------------------------------------------------------------------


class Scripted(GRPOTrainer):
    """Says the same tool calls as every model would, then trains on them."""

    script = ("right", "open", "")

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [self._turn(self.processing_class.decode(ids)) for ids in prompt_ids]
        return [self.processing_class(text)["input_ids"] for text in texts], None

    def _turn(self, said: str) -> str:
        action = self.script[said.count("<tool_response>")]
        call = (
            f'<tool_call>\n{{"name": "act", "arguments": {{"action": "{action}"}}}}\n</tool_call>'
            if action
            else "Done."
        )
        return f"{call}<|im_end|>"


def qwen_tokenizer() -> Any:
    import trl

    return tiny_tokenizer((Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text())


def test_trls_tool_loop_plays_the_world_and_scores_it(tmp_path: Path) -> None:
    task = TRLTask(CORRIDOR, with_list=True)
    dataset = task.dataset().filter(lambda row: row["task_id"] == "corridor-1")
    trainer = Scripted(
        tiny_model(),
        args=settings(tmp_path, max_steps=1, max_completion_length=1500),
        processing_class=qwen_tokenizer(),
        train_dataset=dataset,
        environment_factory=task.environment,
    )
    assert {tool.__name__ for tool in trainer.tools} == {"act", "list_actions"}
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert log["reward"] == 1.0 and log["tools/call_frequency"] == 2.0 and log["tools/failure_frequency"] == 0.0


def test_the_tools_play_by_hand() -> None:
    task = TRLTask(CORRIDOR, with_list=True, horizon=2)
    tools = task.environment()
    row = task.dataset()[0]
    assert tools.reset(**row) is None
    first = tools.reset(task_id=row["task_id"])
    assert first == row["prompt"][-1]["content"] and tools.list_actions().splitlines()[-1] == "jump"
    assert "episode is over" not in tools.act("left")
    assert tools.act("jump").endswith("Stop calling tools.") and tools.get_reward() == 0.0
    assert tools.act("right") == tools.list_actions() == "The episode is over. Stop calling tools."
    with pytest.raises(ConfigError, match="task_id"):
        tools.reset()
    with pytest.raises(ConfigError, match="does not list"):
        TRLTask("tests/Silent-v0", with_list=True)
