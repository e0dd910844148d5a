"""The lean forward pass against transformers' own, and which models it leaves alone."""

import numpy as np
import pytest
import torch
from steca_gym.agents.engines.blocks.engine import BlockEngine
from steca_gym.agents.engines.blocks.llama import why_not_plain
from steca_gym.agents.engines.blocks.paged import BLOCK_SIZE, BlockPool, RaggedModel
from steca_gym.agents.transformers import TransformersAgent
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from steca_gym.agent import Message, Sampling, TurnRequest
from tests.fakes import tiny_tokenizer

ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama(**changes):
    settings = {
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def pool_for(model, *, dtype=None, num_blocks=64, use_kernel=None):
    config = model.config
    return BlockPool(
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        num_blocks=num_blocks,
        dtype=dtype or model.dtype,
        device=torch.device("cpu"),
        use_kernel=use_kernel,
    )


def read_in_pieces(model, rows, cuts):
    """Logits after every piece's last token, keyed by (row, end); rows are read side by side in uneven pieces."""
    ragged = RaggedModel(model, pool_for(model))
    assert ragged.why_not_lean == ""
    free = list(range(63, -1, -1))
    tables = [[free.pop() for _ in range(-(-len(row) // BLOCK_SIZE))] for row in rows]
    done = [0] * len(rows)
    found = {}
    with torch.inference_mode(), ragged:
        while any(d < len(row) for d, row in zip(done, rows, strict=True)):
            taking = [i for i, row in enumerate(rows) if done[i] < len(row)]
            ends = [min(done[i] + cuts[(i + done[i]) % len(cuts)], len(rows[i])) for i in taking]
            logits = ragged.read(
                [rows[i][done[i] : end] for i, end in zip(taking, ends, strict=True)],
                [done[i] for i in taking],
                [tables[i] for i in taking],
            )
            for place, (i, end) in enumerate(zip(taking, ends, strict=True)):
                found[i, end] = logits[place].float()
                done[i] = end
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 12},
        {"rope_parameters": ROPE_LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
        {"rms_norm_eps": 1e-2},
    ],
    ids=["grouped", "untied", "every head its own", "one pair, wide heads", "llama3 rope", "linear rope", "epsilon"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_logits_are_transformers_own(changes, dtype, tolerance):
    model = llama(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # all ones would hide a weight that is left out
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    reference = model
    if dtype == torch.bfloat16:
        for parameter in model.parameters():  # the frequencies of the positions stay float32, as after loading
            parameter.data = parameter.data.to(dtype)
        reference = llama(**changes)
        reference.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(300, (length,), generator=generator).tolist() for length in (130, 1, 47, 16)]
    found = read_in_pieces(model, rows, cuts=(1, 19, 3, 40))
    assert len(found) > 10
    # In bfloat16 transformers' own pass rounds too: both are held against the same weights in float32.
    own_off, off = [], []
    with torch.inference_mode():
        exact = [reference(torch.tensor([row])).logits[0] for row in rows]
        own = [model(torch.tensor([row])).logits[0].float() for row in rows]
    for (row, end), logits in found.items():
        size = exact[row].abs().max()
        off.append(float((logits - exact[row][end - 1]).abs().max() / size))
        own_off.append(float((own[row][end - 1] - exact[row][end - 1]).abs().max() / size))
    assert max(off) <= tolerance
    assert np.mean(off) <= 1.5 * np.mean(own_off) + 1e-6


def adapted():
    peft = pytest.importorskip("peft", reason="peft is not installed: adapted models are not tried")
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    return model.base_model.model


def biased_head():
    model = llama(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(48, 300, bias=True)
    return model


def mistral():
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            max_position_embeddings=512,
        )
    ).eval()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (mistral, "MistralForCausalLM is no LlamaForCausalLM"),
        (lambda: llama(hidden_act="gelu"), "activation 'gelu'"),
        (lambda: llama(attention_bias=True), "biased"),
        (lambda: llama(mlp_bias=True), "biased"),
        (biased_head, "last projection"),
        (adapted, "adapted"),
        (lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
    ],
)
def test_models_that_are_not_plain_are_left_to_transformers(make, why):
    model = make()
    assert why in why_not_plain(model, pool_for(model))


def test_other_numbers_and_paths_are_left_to_transformers():
    model = llama()
    assert why_not_plain(model, pool_for(model)) == ""
    assert "device or dtype" in why_not_plain(model, pool_for(model, dtype=torch.float16))
    assert "device or dtype" in why_not_plain(model, pool_for(model, use_kernel=False))


def test_a_pass_that_is_off_is_not_used(monkeypatch):
    """A change inside a layer that ``why_not_plain`` cannot see: the comparison of the logits does."""
    model = llama()
    own = model.model.layers[1].mlp.forward
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", lambda x: 2 * own(x))
    engine = BlockEngine(model, stop_ids=frozenset({1}), kv_cache_gib=0.01)
    assert engine.ragged.why_not_lean == ""
    engine.check(tolerance=1e-3)
    assert "off by" in engine.ragged.why_not_lean


def test_projections_of_mixed_numbers_are_left_to_transformers():
    model = llama().to(torch.bfloat16)
    model.lm_head = torch.nn.Linear(48, 300, bias=False)
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    engine = BlockEngine(model, stop_ids=frozenset({1}), kv_cache_gib=0.01)
    assert engine.ragged.why_not_lean == ""
    engine.check(tolerance=0.1)
    assert "cannot be read" in engine.ragged.why_not_lean


def agent_of(model, engine="blocks", **kwargs):
    return TransformersAgent(model, tokenizer=tiny_tokenizer(), engine=engine, **kwargs)


def ask(text, seed=0):
    return TurnRequest(
        episode_id=text,
        messages=(Message("user", text),),
        seed=seed,
        turn=0,
        sampling=Sampling(temperature=0.0, max_new_tokens=24),
    )


@pytest.mark.slow
def test_greedily_token_for_token_alone_and_among_others():
    model = llama()
    together = agent_of(model, max_batch_size=5)
    assert together.engine.ragged.why_not_lean == ""
    asked = [ask("You are in red room 1. " * (1 + i % 7) + str(i)) for i in range(20)]
    said = together.act(asked)
    alone = agent_of(model)
    generated = agent_of(model, engine="generate", max_batch_size=1)
    for request, turn in zip(asked, said, strict=True):
        assert alone.act([request])[0].token_ids == turn.token_ids
        assert generated.act([request])[0].token_ids == turn.token_ids
    assert len({turn.token_ids for turn in said}) > 10
    # The lean pass and transformers' forward over the same blocks say the same.
    other = agent_of(model)
    other.engine.ragged.be_plain("for this test")
    assert [turn.token_ids for turn in other.act(asked)] == [turn.token_ids for turn in said]
