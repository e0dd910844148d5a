"""The block engine computes a model exactly, or says why it does not try."""

import pytest
import torch
from steca_gym.agents.engines.base import Row
from steca_gym.agents.engines.blocks.engine import BlockEngine
from steca_gym.agents.engines.blocks.paged import BLOCK_SIZE, BlockPool, RaggedModel
from steca_gym.agents.engines.blocks.support import MODEL_TYPES, why_unsupported
from steca_gym.agents.engines.generate import GenerateEngine
from steca_gym.agents.engines.selection import select_engine
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from steca_gym.errors import CheckpointError

LENGTH = 300
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def model_of(kind, **changes):
    config_class = CONFIG_MAPPING[kind]
    known = set(vars(config_class())) | set(getattr(config_class, "attribute_map", {}))
    if "num_key_value_heads" not in known:
        known.discard("head_dim")
    if "layer_types" in known:
        changes = {"layer_types": ["full_attention"] * 2, **changes}
    settings = {name: value for name, value in SIZES.items() if name in known}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config_class(**{**settings, **changes})).eval()


def full(kind):
    """A model of a type without what some of its sizes have: windows and caps."""
    off = {"gemma2": {"attn_logit_softcapping": None}, "mistral": {"sliding_window": None}}
    return model_of(kind, **off.get(kind, {}))


def largest_difference(model):
    """Logits at many places of rows longer than 256 tokens, read in uneven pieces, against one full forward pass."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    pool = BlockPool(
        num_layers=2,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        num_blocks=64,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    ragged = RaggedModel(model, pool)
    ragged.be_plain("for this test")
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(300, (n,), generator=generator).tolist() for n in (LENGTH, 150)]
    blocks = [list(range(20)), list(range(20, 30))]
    off, size = 0.0, 0.0
    with torch.no_grad():
        own = [model(torch.tensor([one])).logits[0] for one in rows]
    ends = [(20, 270, 1, 130), (270, 271, 130, 131), (271, 300, 131, 150)]
    with torch.no_grad(), ragged:
        ragged.read([rows[0][:20], rows[1][:1]], [0, 0], blocks)
        for start, end, start_b, end_b in ends:
            found = ragged.read([rows[0][start:end], rows[1][start_b:end_b]], [start, start_b], blocks)
            for logits, whole, last in zip(found, own, (end, end_b), strict=True):
                off = max(off, float((logits - whole[last - 1]).abs().max()))
                size = max(size, float(whole.abs().max()))
    return off / size


@pytest.mark.parametrize("kind", sorted(MODEL_TYPES))
def test_every_type_on_the_list_is_computed_exactly(kind):
    model = full(kind)
    assert why_unsupported(model, 1024) == ""
    assert largest_difference(model) < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("mistral", {"sliding_window": 64}, "sliding window of 64 tokens"),
        ("mixtral", {"sliding_window": 128}, "sliding window of 128"),
        ("phi3", {"sliding_window": 200}, "sliding window of 200"),
        ("starcoder2", {"sliding_window": 32}, "sliding window of 32"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 48, "layer_types": ["full_attention", "sliding_attention"]},
            "sliding window of 48",
        ),
        ("gemma3_text", {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}, "window of 64"),
        ("gemma2", {}, "attention scores are capped (attn_logit_softcapping=50.0)"),
        ("gpt_oss", {}, "GptOssForCausalLM is not among"),  # sinks
        ("llama4_text", {}, "Llama4ForCausalLM is not among"),  # chunks, and a temperature that depends on the position
        ("bloom", {}, "BloomForCausalLM is not among"),  # ALiBi
        ("mpt", {}, "MptForCausalLM is not among"),
        ("falcon", {}, "FalconForCausalLM is not among"),
        ("ctrl", {}, "CTRLLMHeadModel is not among"),  # attention of its own
        ("doge", {}, "DogeForCausalLM is not among"),  # masks that depend on the values
        ("lfm2", {}, "Lfm2ForCausalLM is not among"),  # convolutions over tokens
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 64,
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                }
            },
            "'longrope'",
        ),
        ("gpt2", {"reorder_and_upcast_attn": True}, "own code"),
        ("gpt2", {"add_cross_attention": True}, "cross-attention"),
    ],
)
def test_what_is_not_plain_attention_falls_back_with_the_reason(kind, changes, why):
    model = model_of(kind, **changes)
    assert why in why_unsupported(model, 1024)
    parts = {"stop_ids": frozenset({1}), "pad_id": 1, "max_batch_size": 4, "kv_cache_gib": 0.02}
    engine, reason = select_engine("auto", model, **parts)
    assert isinstance(engine, GenerateEngine) and why in reason
    with pytest.raises(CheckpointError, match="engine=blocks") as caught:
        select_engine("blocks", model, **parts)
    assert "\n" not in str(caught.value)
    prompt = [(5 * i) % 290 + 2 for i in range(LENGTH)]
    engine.submit("x", Row(prompt=prompt, seed=0, turn=0, temperature=0.0, top_p=1.0, max_new_tokens=1, logprobs=True))
    done = dict(engine.poll())["x"]
    with torch.no_grad():
        own = model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
    assert max(done.log_probs or [done.stop_log_prob]) == pytest.approx(float(own.max()), abs=1e-3)


@pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn"])
def test_positions_that_depend_on_the_position_alone_are_kept(rope_type):
    parameters = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type != "linear":
        parameters["original_max_position_embeddings"] = 64
    if rope_type == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = model_of("llama", rope_parameters=parameters)
    assert why_unsupported(model, 1024) == ""
    assert largest_difference(model) < 1e-4


def test_a_window_that_no_row_reaches_changes_nothing():
    model = model_of("mistral", sliding_window=1024)
    assert why_unsupported(model, 1024) == "" and largest_difference(model) < 1e-4
    # With a small cache no row gets as long as the window, and the engine refuses longer ones.
    model = model_of("mistral", sliding_window=320, max_position_embeddings=4096)
    token_bytes = 2 * 2 * 2 * 8 * 4
    engine = BlockEngine(model, stop_ids=frozenset({1}), kv_cache_gib=20 * BLOCK_SIZE * token_bytes / 2**30)
    engine.check(tolerance=1e-3)
    assert "sliding window" in why_unsupported(model, 4096)


def test_a_class_of_the_users_own_is_not_trusted_by_its_name():
    model = model_of("llama")
    named = type("LlamaForCausalLM", (type(model),), {"__module__": "my_models"})
    model.__class__ = named
    assert "not among" in why_unsupported(model, 1024)


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "sliding_window", "position_bias", "attention_mask"])
def test_a_layer_that_asks_for_more_than_plain_attention_is_refused(keyword, monkeypatch):
    """A second line of defence after the list: what a model asks of its attention is read in every pass."""
    model = model_of("qwen3")
    for layer in model.model.layers:
        own = layer.self_attn.forward
        extra = torch.zeros(1, 1, 1, 1)
        if keyword == "sliding_window":
            layer.self_attn.sliding_window = 30
        elif keyword == "attention_mask":
            monkeypatch.setattr(
                layer.self_attn,
                "forward",
                lambda *a, own=own, **k: own(*a, **{**k, "attention_mask": torch.zeros(1, 1, 1, 1)}),
            )
        else:
            monkeypatch.setattr(
                layer.self_attn, "forward", lambda *a, own=own, extra=extra, **k: own(*a, **{**k, keyword: extra})
            )
    engine = BlockEngine(model, stop_ids=frozenset({1}), kv_cache_gib=0.02)
    with pytest.raises(CheckpointError, match=keyword):
        engine.check(tolerance=1e-3)


def test_the_check_is_longer_than_a_window_that_the_configuration_names():
    model = model_of("qwen3")
    model.config.my_window_length = 200  # a name that nobody has heard of
    passes = []
    engine = BlockEngine(model, stop_ids=frozenset({1}), kv_cache_gib=0.02)
    own = engine.ragged.read
    engine.ragged.read = lambda tokens, past, tables: (passes.append(past), own(tokens, past, tables))[1]
    engine.check(tolerance=1e-3)
    assert max(past[0] for past in passes) > 200
