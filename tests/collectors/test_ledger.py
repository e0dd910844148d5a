import pytest

from steca_gym.collectors import Cost, Ledger
from steca_gym.errors import DataError


def test_costs_go_to_the_innermost_phase():
    ledger = Ledger()
    ledger.cost.num_turns += 1
    with ledger.phase("a") as cost:
        cost.num_turns += 2
        with ledger.phase("b"):
            ledger.cost.num_turns += 4
        ledger.cost.num_turns += 8
    with ledger.phase("a"):
        ledger.cost.num_turns += 16
    assert {k: v["num_turns"] for k, v in ledger.as_dict().items()} == {"other": 1, "a": 26, "b": 4}
    assert ledger.total().num_turns == 31


def test_ledgers_merge_from_objects_and_from_plain_data():
    ledger, other = Ledger(), Ledger()
    with ledger.phase("a"):
        ledger.cost.add(Cost(num_env_steps=1, seconds_model=0.5))
    with other.phase("a"):
        other.cost.add(Cost(num_env_steps=2, seconds_model=0.25))
    ledger.merge(other)
    ledger.merge(other.as_dict())
    assert ledger.as_dict()["a"]["num_env_steps"] == 5
    assert ledger.as_dict()["a"]["seconds"] == pytest.approx(1.0)


def test_unknown_counters_are_refused():
    with pytest.raises(DataError, match="no counter 'num_apples'"):
        Ledger().merge({"a": {"num_apples": 1}})


def test_a_line_says_what_was_counted():
    assert Cost(num_env_steps=3).line() == "3 environment steps"
    cost = Cost(
        num_env_steps=12_000,
        num_replayed_steps=5,
        num_sampled_tokens=700,
        num_prompt_tokens_read=10,
        num_prompt_tokens_reused=30,
        seconds_model=9.0,
        seconds_environment=0.5,
        seconds_framework=0.5,
    )
    assert cost.line() == (
        "12,000 environment steps, 5 replayed, 700 tokens sampled, 40 prompt tokens, 75% reused, "
        "model 90% of the time, environment 5% of the time"
    )
