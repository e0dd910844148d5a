"""Memory stays flat however the shapes of batches vary.

The number of shapes is tested directly; the soak tests (slow) measure the resident memory of a process.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from steca_gym.agents.engines.base import Row
from steca_gym.agents.engines.blocks.engine import BlockEngine
from steca_gym.agents.engines.generate import GenerateEngine
from steca_gym.agents.engines.padding import padded_size

from tests.fakes import tiny_model

NUM_TURNS = {"blocks": 4_000, "generate": 800}
"""``STECA_SOAK_TURNS`` takes another number"""


def in_bfloat16(model):
    for parameter in model.parameters():  # the frequencies of the positions stay float32, as after loading
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def engine_of(name, model, *, stop_ids=frozenset({10_000}), max_batch_size=24):
    if name == "blocks":
        return BlockEngine(model, stop_ids=stop_ids, kv_cache_gib=0.004, max_batch_size=max_batch_size)
    return GenerateEngine(model, stop_ids=stop_ids, pad_id=1, max_batch_size=max_batch_size)


def play(engine, num_turns, *, start=0, longest=200):
    """Turns of ever other lengths and batch sizes."""
    turn = start
    generator = torch.Generator().manual_seed(start)
    while turn < start + num_turns:
        count = int(torch.randint(1, 24, (1,), generator=generator))
        for index in range(count):
            length, new = torch.randint(1, longest, (2,), generator=generator).tolist()
            prompt = torch.randint(300, (length,), generator=generator).tolist()
            row = Row(prompt=prompt, seed=turn, turn=0, temperature=1.0, top_p=1.0, max_new_tokens=1 + new % 4)
            engine.submit(str(index), row)
        while engine.poll():
            pass
        engine.release(map(str, range(count)))
        turn += count


@pytest.mark.parametrize("lean", [True, False])
def test_passes_in_bfloat16_have_few_sizes(lean, monkeypatch):
    model = in_bfloat16(tiny_model(num_layers=1))
    engine = engine_of("blocks", model)
    sizes = set()
    if lean:
        own = engine.ragged._lean.read
        monkeypatch.setattr(
            engine.ragged._lean,
            "read",
            lambda ids, positions, last, rows: (sizes.update({len(ids), len(last)}), own(ids, positions, last, rows))[
                1
            ],
        )
    else:
        engine.ragged.be_plain("for this test")
        model.register_forward_pre_hook(
            lambda module, args, kwargs: sizes.update({kwargs["input_ids"].shape[1], len(kwargs["logits_to_keep"])}),
            with_kwargs=True,
        )
    play(engine, 60)
    assert len(sizes) > 5
    assert sizes == {padded_size(size) for size in sizes}


def test_generate_in_bfloat16_has_few_sizes():
    model = in_bfloat16(tiny_model(num_layers=1))
    engine = engine_of("generate", model)
    sizes = set()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.update(kwargs["input_ids"].shape), with_kwargs=True
    )
    play(engine, 60)
    assert len(sizes) > 5
    assert sizes == {padded_size(size) for size in sizes}


@pytest.mark.parametrize("name", ["blocks", "generate"])
def test_padding_changes_no_token(name):
    rows = [
        Row(prompt=list(range(2, 2 + n)), seed=n, turn=0, temperature=1.0, top_p=1.0, max_new_tokens=5)
        for n in (19, 1, 37, 130)
    ]

    def decode(padded):
        engine = engine_of(name, tiny_model())
        for index, row in enumerate(rows):
            engine.submit(str(index), row)
        done = {}
        if name == "blocks":
            engine.ragged.pads = padded
        else:
            engine._pads = lambda: padded
        while found := engine.poll():
            done.update(found)
        return {key: one.tokens for key, one in done.items()}

    assert decode(padded=True) == decode(padded=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["blocks", "generate"])
def test_resident_memory_is_flat_over_many_turns(name, dtype):
    """The second half of the turns adds less than 1 % (and less than 4 MB counts as nothing).

    Free heap goes back to the system before each reading: how much of it lies about depends on the last batches alone,
    and came to 10 MB more or less from one turn to the next where nothing grew.
    """
    turns = int(os.environ.get("STECA_SOAK_TURNS", NUM_TURNS[name]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.agents.engines.test_memory", name, dtype, str(turns)],
        capture_output=True,
        text=True,
        check=True,
        timeout=3600,
    )
    half, end = json.loads(done.stdout.splitlines()[-1])
    assert end - half < max(0.01 * half, 4.0), f"{half:.0f} MB after half of the turns, {end:.0f} MB after all"


def measure(name, dtype, turns):
    import ctypes
    import gc
    import mmap
    from pathlib import Path

    def resident():
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 1e6

    torch.set_num_threads(1)
    model = tiny_model(num_layers=1)
    engine = engine_of(name, in_bfloat16(model) if dtype == "bfloat16" else model)
    play(engine, turns // 2)
    half = resident()
    play(engine, turns // 2, start=turns)
    print(json.dumps([half, resident()]))


if __name__ == "__main__":
    measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
