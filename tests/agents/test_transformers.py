import dataclasses

import pytest
import torch
from steca_gym.agents.transformers import TransformersAgent

from steca_gym.agent import Message, Sampling, StreamingAgent, TurnRequest
from steca_gym.chat import encode_conversation
from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.errors import AgentError, CheckpointError, ConfigError
from tests.fakes import corridor, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def parts():
    return tiny_model(), tiny_tokenizer()


def make(parts, **kwargs):
    model, tokenizer = parts
    return TransformersAgent(model, tokenizer=tokenizer, **kwargs)


def requests(count, temperature, max_new_tokens=9):
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    return [EpisodeRequest(task_id=f"corridor-{1 + i % 5}", seed=i, sampling=sampling) for i in range(count)]


def play(agent, asked, num_envs=64, horizon=4):
    collector = Collector(corridor(horizon=horizon), agent, num_envs=num_envs)
    return [episode.trajectory for episode in collector.run(asked)], collector.ledger.total()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_engines_say_the_same_and_blocks_read_less(parts, temperature):
    asked = requests(6, temperature)
    ours, cost = play(make(parts, engine="blocks"), asked)
    plain, whole = play(make(parts, engine="generate"), asked)
    assert [t.steps for t in ours] == [t.steps for t in plain]
    assert cost.num_prompt_tokens_read + cost.num_prompt_tokens_reused == whole.num_prompt_tokens_read
    assert cost.num_prompt_tokens_read < whole.num_prompt_tokens_read / 2
    assert cost.num_sampled_tokens == whole.num_sampled_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("max_batch_size", [3, 64])
def test_alone_and_among_others_token_for_token(parts, temperature, max_batch_size):
    asked = requests(7, temperature)
    together, _ = play(make(parts, max_batch_size=max_batch_size), asked)
    agent = make(parts)
    alone = [play(agent, [request], num_envs=1)[0][0] for request in asked]
    assert together == alone


def test_a_small_cache_evicts_and_reads_again_with_the_same_result(parts):
    asked = requests(8, 1.0)
    roomy, much = play(make(parts), asked)
    agent = make(parts, kv_cache_gib=60 * 16 * 512 / 2**30)
    tight, more = play(agent, asked)
    assert agent.engine.table.num_blocks == 60
    assert tight == roomy
    assert more.num_prompt_tokens_read > much.num_prompt_tokens_read


def test_forks_read_their_common_prefix_once(parts):
    agent = make(parts)
    collector = Collector(corridor(horizon=8), agent)
    whole = collector.run([dataclasses.replace(requests(1, 1.0)[0], capture=True)])[0]
    before = collector.ledger.total().num_prompt_tokens_read
    fork = whole.forks[6]
    sampling = Sampling(max_new_tokens=9)
    asked = [
        EpisodeRequest(task_id=fork.snapshot.task_id, seed=s, start=fork, sampling=sampling, max_agent_turns=1)
        for s in range(5)
    ]
    forked = collector.run(asked)
    prompt, _ = encode_conversation(agent.tokenizer, fork.prefix.messages(collector.prompt), for_generation=True)
    read = collector.ledger.total().num_prompt_tokens_read - before
    # What the last block holds only in part is read by each; the new observation by the first of them.
    assert read <= 5 * 16 + 200 < len(prompt)
    fresh, _ = play(make(parts), asked, horizon=8)
    assert [e.trajectory.steps for e in forked] == [t.steps for t in fresh]


def test_ids_are_kept_in_prompts_and_samples(parts):
    agent = make(parts)
    trajectory = play(agent, requests(1, 1.0))[0][0]
    ids, mask = encode_conversation(agent.tokenizer, trajectory.messages(Collector(corridor(), agent).prompt))
    end = list(agent.codec.end_ids)
    # A turn that was cut did not end, and is not taught to end there.
    said = [token for step in trajectory.steps for token in (*step.token_ids, *(() if step.truncated else end))]
    assert [token for token, mine in zip(ids, mask, strict=True) if mine] == said
    # Bytes of a random model do not survive decoding and encoding: to keep ids is not the same as to keep text.
    again = [token for step in trajectory.steps for token in agent.codec.tokenize(step.text)]
    assert again != [token for step in trajectory.steps for token in step.token_ids]


def test_the_engine_feeds_exactly_what_the_samples_hold(parts, monkeypatch):
    agent = make(parts)
    fed = {}
    original = type(agent.engine).submit

    def spy(self, key, row):
        fed.setdefault(key, []).append(list(row.prompt))
        return original(self, key, row)

    monkeypatch.setattr(type(agent.engine), "submit", spy)
    trajectory = play(agent, requests(1, 1.0))[0][0]
    ids, _ = encode_conversation(agent.tokenizer, trajectory.messages(Collector(corridor(), agent).prompt))
    prompts = next(iter(fed.values()))
    assert len(prompts) == 4
    for prompt in prompts:
        assert ids[: len(prompt)] == prompt


def test_turns_come_back_one_by_one(parts):
    agent = make(parts)
    assert isinstance(agent, StreamingAgent)
    hello = (Message("user", "hello"),)
    short = Sampling(max_new_tokens=1, temperature=0)
    long = Sampling(max_new_tokens=30, temperature=0)
    agent.submit(
        [
            TurnRequest(episode_id="long", messages=hello, seed=0, turn=0, sampling=long),
            TurnRequest(episode_id="short", messages=(Message("user", "you"),), seed=0, turn=0, sampling=short),
        ]
    )
    assert [key for key, _ in agent.poll()] == ["short"]
    agent.submit([TurnRequest(episode_id="late", messages=(Message("user", "me"),), seed=0, turn=0, sampling=short)])
    assert [key for key, _ in agent.poll()] == ["late"]
    with pytest.raises(AgentError, match="under way already"):
        agent.submit([TurnRequest(episode_id="long", messages=hello, seed=0, turn=0, sampling=long)])
    agent.release(["long"])
    assert agent.poll() == []
    table = agent.engine.table
    agent.release(["short", "late"])
    assert table.num_available == table.num_blocks


def test_a_prompt_that_is_too_long_fails_alone(parts):
    asked = requests(2, 0.0)
    agent = make(parts, kv_cache_gib=30 * 16 * 512 / 2**30)
    long = dataclasses.replace(asked[1], sampling=Sampling(max_new_tokens=1000))
    good, bad = play(agent, [asked[0], long], horizon=2)[0]
    assert good.status == "truncated" and bad.status == "error"
    assert "exceed the 480" in bad.error


def test_a_trained_live_model_is_read_anew():
    model, tokenizer = tiny_model(seed=3), tiny_tokenizer()
    agent = TransformersAgent(model, tokenizer=tokenizer)
    asked = requests(2, 0.0)
    before, _ = play(agent, asked)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after, cost = play(agent, asked)
    fresh, fresh_cost = play(TransformersAgent(model, tokenizer=tokenizer), asked)
    assert after == fresh and after != before
    assert cost.num_prompt_tokens_reused == fresh_cost.num_prompt_tokens_reused


def test_a_live_model_keeps_its_own_attention(parts):
    play(make(parts), requests(1, 0.0))
    assert parts[0].config._attn_implementation == "sdpa"


def test_folders_load_and_what_is_none_is_refused(parts, tmp_path):
    model, tokenizer = parts
    model.save_pretrained(tmp_path / "good")
    tokenizer.save_pretrained(tmp_path / "good")
    agent = TransformersAgent(tmp_path / "good", dtype="auto")
    assert agent.name == "good" and "measured" in agent.engine_line
    assert "not reproducible" in agent.engine_line
    unnamed = TransformersAgent(tmp_path / "good")
    assert unnamed.dtype == "float32" and "measured" not in unnamed.engine_line
    explicit = TransformersAgent(tmp_path / "good", dtype="float32")
    assert play(explicit, requests(2, 0.0))[0][0].steps == play(make(parts), requests(2, 0.0))[0][0].steps
    half = TransformersAgent(tmp_path / "good", dtype="bfloat16")
    assert half.engine.name == "blocks" and all(t.status == "truncated" for t in play(half, requests(3, 1.0))[0])
    with pytest.raises(CheckpointError, match="no such folder"):
        TransformersAgent(tmp_path / "nowhere")
    model.save_pretrained(tmp_path / "bare")
    tiny_tokenizer(None).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no chat template") as caught:
        TransformersAgent(tmp_path / "bare")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("worth", "taken"), [(0.0, "bfloat16"), (1e9, "float32")])
def test_the_measured_choice_is_what_from_pretrained_gives(parts, tmp_path, monkeypatch, worth, taken):
    from steca_gym.agents.engines import models as loading
    from transformers import AutoModelForCausalLM

    parts[0].save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_WORTH", worth)
    model, chosen = loading.load_model(tmp_path, "auto", None)
    assert chosen.startswith(f"{taken}, measured") and str(model.dtype) == f"torch.{taken}"
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, taken)).eval()
    # Rounded rotary frequencies would be wrong by a tenth of a turn after a thousand tokens.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    ids = torch.arange(1500).unsqueeze(0) % 300
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, fresh(ids).logits)


def test_other_attention_falls_back_and_says_so():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    local = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=300,
            hidden_size=32,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
            num_heads=4,
            max_position_embeddings=512,
        )
    ).eval()
    agent = TransformersAgent(local, tokenizer=tiny_tokenizer())
    assert agent.engine.name == "generate" and "histories are read again" in agent.engine_line
    with pytest.raises(CheckpointError, match="engine=blocks"):
        TransformersAgent(local, tokenizer=tiny_tokenizer(), engine="blocks")
    assert all(t.status == "truncated" for t in play(agent, requests(2, 1.0), horizon=2)[0])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"kv_cache_gib": 0}, "kv_cache_gib"),
        ({"kv_cache_gib": 1e-9}, "blocks of 16"),
        ({"engine": "warp"}, "engine must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(parts, kwargs, match):
    with pytest.raises(ConfigError, match=match):
        make(parts, **kwargs)


def test_a_live_model_needs_its_tokenizer(parts):
    with pytest.raises(ConfigError, match="tokenizer"):
        TransformersAgent(parts[0])


def test_forced_ids_are_said_and_the_model_is_asked(parts):
    agent = make(parts)
    agent.force = lambda request: [5, 6, 7]
    trajectory = play(agent, requests(1, 1.0))[0][0]
    assert {step.token_ids for step in trajectory.steps} == {(5, 6, 7)}


def test_what_was_forgotten_is_read_again(parts):
    agent = make(parts)
    first, cost = play(agent, requests(3, 1.0))
    _, shared = play(agent, requests(3, 1.0))
    assert shared.num_prompt_tokens_read < cost.num_prompt_tokens_read
    agent.forget()
    table = agent.engine.table
    assert table.num_available == table.num_blocks
    again, anew = play(agent, requests(3, 1.0))
    assert anew.num_prompt_tokens_read == cost.num_prompt_tokens_read and again == first


def ask(agent, text="hello", seed=0, **sampling):
    settings = Sampling(**{"max_new_tokens": 12, **sampling})
    request = TurnRequest(episode_id=text, messages=(Message("user", text),), seed=seed, turn=0, sampling=settings)
    return agent.act([request])[0]


@pytest.mark.parametrize("engine", ["blocks", "generate"])
def test_log_probs_come_with_the_turn_if_asked_for(parts, engine):
    agent = make(parts, engine=engine)
    assert ask(agent).log_probs is None and ask(agent).end_log_prob is None
    turn = ask(agent, logprobs=True, temperature=0.8)
    prompt, _ = encode_conversation(agent.tokenizer, [Message("user", "hello")], for_generation=True)
    ids = [*prompt, *turn.token_ids]
    with torch.no_grad():
        logits = parts[0](torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(turn.token_ids)[:, None])[:, 0]
    assert len(turn.log_probs) == len(turn.token_ids)
    assert turn.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("engine", ["blocks", "generate"])
def test_a_turn_says_whether_it_was_cut(parts, engine):
    agent = make(parts, engine=engine)
    cut = ask(agent, max_new_tokens=3)
    assert cut.truncated and cut.num_sampled_tokens == len(cut.token_ids) == 3 and cut.end_log_prob is None
    agent.force = lambda request: [5, 6]
    whole = ask(agent, "you", logprobs=True)
    assert not whole.truncated and whole.token_ids == (5, 6) and whole.num_sampled_tokens == 3
    assert whole.end_log_prob < 0


@pytest.mark.parametrize("engine", ["blocks", "generate"])
@pytest.mark.parametrize("as_list", [True, False])
def test_the_models_own_stop_tokens_end_a_turn(engine, as_list, caplog):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    free = ask(TransformersAgent(model, tokenizer=tokenizer, engine=engine))
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    model.generation_config.eos_token_id = [1, stop, 5_000] if as_list else stop
    agent = TransformersAgent(model, tokenizer=tokenizer, engine=engine)
    turn = ask(agent)
    assert turn.token_ids == free.token_ids[:first] and not turn.truncated
    assert f"id {stop}" in caplog.text and "5000" not in caplog.text  # an ordinary token: worth a line


@pytest.mark.parametrize("eos", ["</s>", [1, "2"], [True], 1.5, [-1]])
def test_stop_tokens_that_are_no_ids_are_one_line(eos):
    model = tiny_model()
    model.generation_config.eos_token_id = eos
    with pytest.raises(CheckpointError, match="eos_token_id must be a token id or a list of them"):
        TransformersAgent(model, tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("engine", ["blocks", "generate"])
def test_a_conversation_that_is_too_long_or_foreign_fails_alone(engine):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=270, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()
    agent = TransformersAgent(model, tokenizer=tiny_tokenizer(), engine=engine)
    sampling = Sampling(max_new_tokens=4)
    texts = {"good": "ab", "long": "ab " * 100, "foreign": "You are in red room 1.", "also good": "cd"}
    asked = [
        TurnRequest(episode_id=key, messages=(Message("user", text),), seed=0, turn=0, sampling=sampling)
        for key, text in texts.items()
    ]
    # "user" and "assistant" are spelt with small ids here, the merged words of the corpus with ids over 270.
    agent.submit(asked)
    done = {}
    while found := agent.poll():
        done.update(found)
    assert "exceed the 64" in str(done["long"]) and "model's 270 embeddings" in str(done["foreign"])
    assert len(done["good"].token_ids) <= 4 and len(done["also good"].token_ids) <= 4
    assert agent.poll() == []


def test_a_conversation_that_the_template_refuses_fails_alone(parts, monkeypatch):
    agent = make(parts)
    own = agent.codec.encode

    def encode(messages, **kwargs):
        if messages[0].content == "bad":
            raise CheckpointError("the template refuses this")
        return own(messages, **kwargs)

    monkeypatch.setattr(agent.codec, "encode", encode)
    sampling = Sampling(max_new_tokens=2)
    agent.submit(
        [
            TurnRequest(episode_id=text, messages=(Message("user", text),), seed=0, turn=0, sampling=sampling)
            for text in ("one", "bad", "two")
        ]
    )
    done = {}
    while found := agent.poll():
        done.update(found)
    assert set(done) == {"one", "bad", "two"} and isinstance(done["bad"], CheckpointError)


@pytest.mark.parametrize("engine", ["blocks", "generate"])
def test_weights_changed_in_place_give_the_turn_of_a_new_agent(engine):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    agent = TransformersAgent(model, tokenizer=tokenizer, engine=engine)
    first = ask(agent, logprobs=True)
    for parameter in model.parameters():
        parameter.data.mul_(1.3)  # not counted by torch
    agent.weights_changed()
    after = ask(agent, logprobs=True)
    fresh = ask(TransformersAgent(model, tokenizer=tokenizer, engine=engine), logprobs=True)
    assert after == fresh and after.token_ids != first.token_ids


@pytest.mark.parametrize("engine", ["blocks", "generate"])
def test_training_steps_between_turns_are_seen_and_not_disturbed(engine):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    agent = TransformersAgent(model, tokenizer=tokenizer, engine=engine)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    turns = []
    for _ in range(3):
        turns.append(ask(agent, temperature=0.0))
        fresh = TransformersAgent(model, tokenizer=tokenizer, engine=engine)
        assert turns[-1].token_ids == ask(fresh, temperature=0.0).token_ids
        model.train()
        loss = model(torch.arange(2, 60)[None], labels=torch.arange(2, 60)[None]).loss
        loss.backward()  # what was computed in between must not be in the way
        optimizer.step()
        optimizer.zero_grad()
        assert model.training and model.config._attn_implementation == "sdpa"
    assert len({turn.token_ids for turn in turns}) > 1


def test_a_live_model_may_be_adapted_and_cast_between_turns():
    peft = pytest.importorskip("peft", reason="peft is not installed: adapted models are not tried")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    agent = TransformersAgent(adapted, tokenizer=tokenizer)
    assert agent.engine.name == "blocks"
    before = ask(agent)
    assert before.token_ids == ask(TransformersAgent(tiny_model(), tokenizer=tokenizer)).token_ids
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    after = ask(agent)
    assert after.token_ids != before.token_ids
    assert after.token_ids == ask(TransformersAgent(adapted, tokenizer=tokenizer, engine="generate")).token_ids
    adapted.to(torch.bfloat16)
    agent.weights_changed()
    assert agent.engine.pool.keys.dtype == torch.bfloat16 and len(ask(agent).token_ids) > 0


def test_adapters_that_were_added_behind_the_engines_back_are_used():
    peft = pytest.importorskip("peft", reason="peft is not installed: adapted models are not tried")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    agent = TransformersAgent(model, tokenizer=tokenizer)
    assert agent.engine.ragged.why_not_lean == ""
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    agent.weights_changed()
    assert "adapted" in agent.engine.ragged.why_not_lean
    assert ask(agent).token_ids == ask(TransformersAgent(model, tokenizer=tokenizer, engine="generate")).token_ids


def test_any_engine_can_serve_the_agent(parts):
    """An engine of the user's own: the protocol is all that it needs."""
    from steca_gym.agents.engine_agent import EngineAgent
    from steca_gym.agents.engines.base import Completion, Engine

    from steca_gym.chat import codec_of

    class Echo:
        name = "echo"
        model_seconds = 0.0

        def __init__(self):
            self.rows = []

        def submit(self, key, row):
            self.rows.append((key, row))

        def poll(self):
            rows, self.rows = self.rows, []
            return [
                (key, Completion(tokens=tuple(row.prompt[-row.max_new_tokens :]), stop_token=None, num_read=1))
                for key, row in rows
            ]

        def release(self, keys):
            self.rows = [item for item in self.rows if item[0] not in set(keys)]

        def clear(self):
            self.rows = []

        def weights_changed(self):
            pass

    engine: Engine = Echo()
    agent = EngineAgent(engine, codec_of(parts[1]), name="echo")
    assert isinstance(agent, StreamingAgent)
    turn = ask(agent, max_new_tokens=3)
    assert turn.truncated and len(turn.token_ids) == 3 and turn.num_sampled_tokens == 3
