"""Rows that come and go, what is read again and what is not, and what a row says whoever else is there."""

import numpy as np
import pytest
import torch
from steca_gym.agents.engines.base import Row
from steca_gym.agents.engines.blocks.engine import BlockEngine
from steca_gym.agents.engines.blocks.paged import BLOCK_SIZE
from steca_gym.agents.transformers import TransformersAgent

from steca_gym.agent import Message, Prompt, Sampling, TurnRequest
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import AgentError
from steca_gym.training.samples import IGNORED, encode_sample
from steca_gym.trajectory import WeightedTrajectory
from tests.fakes import corridor, tiny_model, tiny_tokenizer

NEVER = frozenset({10_000})  # no id of the vocabulary: rows say as much as they may


def engine_of(model=None, *, num_blocks=200, stop_ids=NEVER, **kwargs):
    model = model if model is not None else tiny_model()
    config = model.config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    return BlockEngine(model, stop_ids=stop_ids, kv_cache_gib=num_blocks * BLOCK_SIZE * token_bytes / 2**30, **kwargs)


def row(prompt, count, *, seed=0, turn=0, temperature=0.0):
    return Row(prompt=prompt, seed=seed, turn=turn, temperature=temperature, top_p=1.0, max_new_tokens=count)


def drain(engine):
    said = {}
    while ended := engine.poll():
        said.update(ended)
    return said


def spy(engine):
    """Every pass's rows as (tokens, stored before, blocks)."""
    passes = []
    read = engine.ragged.read

    def watched(tokens, past, tables):
        passes.append([(len(t), p, tuple(b)) for t, p, b in zip(tokens, past, tables, strict=True)])
        return read(tokens, past, tables)

    engine.ragged.read = watched
    return passes


@pytest.mark.slow
def test_rows_leave_and_enter_while_others_go_on():
    engine = engine_of(max_batch_size=3)
    passes = spy(engine)
    engine.submit("long", row(list(range(2, 42)), 30))
    for index in range(6):
        engine.submit(f"short {index}", row([50 + index, *range(100, 110)], 4))
    said = drain(engine)
    assert len(said) == 7 and len(said["long"].tokens) == 30
    # The long row reads its prompt once and then one token a pass, in the blocks that it had, whoever else is there.
    mine = [next(r for r in one if r[1] == past) for past, one in zip([0, *range(40, 69)], passes, strict=False)]
    assert [count for count, _, _ in mine] == [40, *[1] * 29]
    for earlier, later in zip(mine, mine[1:], strict=False):
        assert later[2][: len(earlier[2])] == earlier[2]
    # Whoever waits takes a free place in the next pass: 3 rows at once until nobody waits.
    assert [len(one) for one in passes[:8]] == [3] * 8 and max(map(len, passes)) == 3
    assert len(passes) == 30


def test_no_token_is_read_twice_over_many_turns():
    engine = engine_of()
    passes = spy(engine)
    rng = np.random.default_rng(0)
    conversations = {f"e{i}": rng.integers(2, 300, 20 + 7 * i).tolist() for i in range(4)}
    for turn in range(5):
        before = {key: len(ids) for key, ids in conversations.items()}
        for key, ids in conversations.items():
            engine.submit(key, row(list(ids), 6, turn=turn))
        for key, said in drain(engine).items():
            stored = 0 if turn == 0 else said.num_reused
            assert said.num_read + said.num_reused == before[key]
            # Of the last turn only its last token was said but not read.
            assert turn == 0 or before[key] - stored == 9 + 1
            conversations[key] += [*said.tokens, *rng.integers(2, 300, 9).tolist()]
    whole = sum(map(len, conversations.values()))
    # After the last turn stand the new observation (9) and the last word (1), which nobody had to read.
    assert sum(count for one in passes for count, _, _ in one) == whole - 4 * 10


def test_long_prompts_are_read_in_shares_beside_rows_that_speak():
    engine = engine_of(max_batch_size=2, max_pass_tokens=32)
    passes = spy(engine)
    engine.submit("speaks", row([5, 6, 7], 12))
    engine.submit("reads", row(list(range(2, 202)), 2))
    drain(engine)
    assert max(sum(count for count, _, _ in one) for one in passes) <= 32
    # The one that speaks is never held up: one token a pass until it is done.
    assert [one[0][0] for one in passes[1:12]] == [1] * 11


def test_memory_stays_within_the_setting_and_the_oldest_waiting_goes_first():
    engine = engine_of(num_blocks=16)
    assert engine.pool.keys.shape[1] == engine.table.num_blocks == 16
    storage = engine.pool.keys.nbytes + engine.pool.values.nbytes
    assert storage == 16 * BLOCK_SIZE * 2 * 2 * 2 * 16 * 4  # tokens, key and value, layers, heads, width, bytes
    for index in range(3):
        engine.submit(f"e{index}", row([10 + index] * 70, 3))
        drain(engine)
    assert engine.table.num_evicted == 0 and engine.table.num_available == 1
    engine.submit("new", row([99] * 70, 3))
    assert engine.poll()[0][0] == "new"
    # "e0" had to go; "e2" and "new" are there still.
    again = {}
    for key, first in (("e2", 12), ("new", 99), ("e0", 10)):
        engine.submit(key, row([first] * 70, 3, turn=1))
        again[key] = dict(engine.poll())[key].num_reused
    assert again["e2"] == again["new"] == 64 > again["e0"]


def test_a_row_that_fits_no_cache_fails_alone():
    engine = engine_of(num_blocks=4)
    engine.submit("big", row([5] * 70, 3))
    engine.submit("good", row([5] * 10, 3))
    said = drain(engine)
    assert isinstance(said["big"], AgentError) and len(said["good"].tokens) == 3


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_many_in_parallel_are_distributed_as_the_model_says(temperature):
    """4,000 rows side by side against the model's own probabilities, and against rows alone."""
    model = tiny_model(seed=2)
    prompt = [5, 17, 33, 8, 120]
    with torch.inference_mode():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / temperature, 0).double().numpy()
    engine = engine_of(model, max_batch_size=200)
    count = 4000
    for seed in range(count):
        engine.submit(str(seed), row(prompt, 1, seed=seed, temperature=temperature))
    said = {key: one.tokens[0] for key, one in drain(engine).items()}
    found = np.bincount(list(said.values()), minlength=len(expected))
    often = expected * count >= 5
    assert often.sum() >= 5
    cells = np.append(expected[often], expected[~often].sum()) * count
    seen = np.append(found[often], found[~often].sum())
    statistic = float(((seen - cells) ** 2 / np.maximum(cells, 1e-9)).sum())
    degrees = len(cells) - 1
    # Wilson and Hilferty's approximation of the chi-square's quantile at 0.9999.
    assert statistic < degrees * (1 - 2 / (9 * degrees) + 3.719 * (2 / (9 * degrees)) ** 0.5) ** 3
    alone = engine_of(model, max_batch_size=1)
    for seed in range(0, count, 200):
        alone.submit("x", row(prompt, 1, seed=seed, temperature=temperature))
        assert dict(alone.poll())["x"].tokens[0] == said[str(seed)]
        alone.release(["x"])


def test_forks_refer_to_the_same_blocks():
    engine = engine_of()
    prefix = list(range(2, 102))
    engine.submit("whole", row(prefix, 2))
    drain(engine)
    passes = spy(engine)
    for index in range(5):
        engine.submit(f"fork {index}", row([*prefix, 200 + index], 8, seed=index, temperature=1.0))
    said = drain(engine)
    shared = len(prefix) // BLOCK_SIZE
    held = {blocks[:shared] for one in passes for _, _, blocks in one}
    assert len(held) == 1 and len(next(iter(held))) == shared
    own = [block for _, _, blocks in passes[-1] for block in blocks[shared:]]
    assert len(own) == len(set(own))  # where they differ, nobody writes into another's block
    assert all(one.num_reused == shared * BLOCK_SIZE for one in said.values())
    assert sum(count for count, _, _ in passes[0]) == 5 * (len(prefix) + 1 - shared * BLOCK_SIZE)


def test_forks_that_start_together_read_their_prefix_once():
    engine = engine_of()
    passes = spy(engine)
    prefix = list(range(2, 162))
    for index in range(5):
        engine.submit(f"fork {index}", row([*prefix, 200 + index], 3, seed=index))
    said = drain(engine)
    read = sum(count for one in passes for count, _, _ in one) - 5 * 2  # without what was said
    assert read == len(prefix) + 5
    assert sum(one.num_read for one in said.values()) == read


def test_ids_said_are_the_ids_fed_and_the_ids_trained_on():
    """Through the engine, the trajectory and ``training.samples``: no id changes on the way."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    agent = TransformersAgent(model, tokenizer=tokenizer)
    prompts = []
    submit = agent.engine.submit
    agent.engine.submit = lambda key, one: (prompts.append(list(one.prompt)), submit(key, one))[1]
    prompt = Prompt(instruction="Walk.", examples=(Message("user", "Red room."), Message("assistant", "Action: right")))
    request = EpisodeRequest(task_id="corridor-5", seed=3, sampling=Sampling(max_new_tokens=12))
    with Collector(corridor(horizon=6), agent, prompt=prompt) as collector:
        trajectory = collector.run([request])[0].trajectory
    assert len(prompts) == len(trajectory.steps) == 6
    sample = encode_sample(tokenizer, WeightedTrajectory(trajectory=trajectory), prompt)
    ids = list(sample.input_ids)
    end = list(agent.codec.end_ids)
    for fed, step in zip(prompts, trajectory.steps, strict=True):
        assert ids[: len(fed)] == fed
        said = [*step.token_ids, *end]
        assert ids[len(fed) : len(fed) + len(said)] == said
        # A turn that was cut did not end, and is not taught to end there.
        taught = [IGNORED] * len(end) if step.truncated else end
        assert list(sample.labels[len(fed) : len(fed) + len(said)]) == [*step.token_ids, *taught]
    assert sum(label != IGNORED for label in sample.labels) == sum(
        len(s.token_ids) + (0 if s.truncated else len(end)) for s in trajectory.steps
    )
    # The text would not have given the same ids: the test can fail.
    again = [token for step in trajectory.steps for token in agent.codec.tokenize(step.text)]
    assert again != [token for step in trajectory.steps for token in step.token_ids]


def test_a_fork_goes_on_from_the_ids_that_were_said():
    agent = TransformersAgent(tiny_model(), tokenizer=tiny_tokenizer())
    with Collector(corridor(horizon=8), agent) as collector:
        sampling = Sampling(max_new_tokens=9)
        asked = EpisodeRequest(task_id="corridor-5", seed=1, sampling=sampling, capture=True)
        whole = collector.run([asked])[0]
        before = collector.ledger.total().num_prompt_tokens_reused
        fork = whole.forks[5]
        collector.run([EpisodeRequest(task_id="corridor-5", seed=9, start=fork, sampling=sampling, max_agent_turns=1)])
        reused = collector.ledger.total().num_prompt_tokens_reused - before
    ids, _ = agent.codec.encode(fork.prefix.messages(Prompt()), for_generation=True)
    # All but the last observation was read in the episode that the fork comes from, ids and all.
    assert reused >= len(ids) - 2 * BLOCK_SIZE - len(agent.codec.tokenize(fork.prefix.steps[-1].observation))


def test_the_sample_follows_from_seed_and_turn():
    agent = TransformersAgent(tiny_model(), tokenizer=tiny_tokenizer())

    def ask(seed, turn):
        request = TurnRequest(
            episode_id=f"{seed}/{turn}",
            messages=(Message("user", "hello"),),
            seed=seed,
            turn=turn,
            sampling=Sampling(max_new_tokens=8),
        )
        return agent.act([request])[0].token_ids

    assert ask(1, 0) == ask(1, 0)
    assert len({ask(1, 0), ask(2, 0), ask(1, 1)}) == 3
