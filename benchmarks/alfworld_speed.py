"""What a step, a reset, a saved state and a live environment cost: ALFWorld 0.4.2 and ours, side by side.

    python benchmarks/alfworld_speed.py --data DATA --out benchmarks/results/alfworld.md

Both play the same official games with the same commands (the walkthrough, then admissible ones drawn with a seed, a tenth
of them malformed), in one process, the real engine first untouched, then with everything kept that it parses again and
again (see ``alfworld_equality.Real``). Every answer is compared. Ours is measured as bare engine and as the whole
``TextEnv``. Times are processor time of this process, for ours medians over rounds.
Memory of the real one is the growth of a fresh process; of ours what 2,000 environments take, divided. Needs the
``alfworld-reference`` extra.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
from _machine import machine_line
from alfworld_equality import Real, command, official_games
from steca_gym.envs.alfworld import AlfredWorld, OfficialGames, engine, household
from steca_gym.envs.alfworld.game import Game, load_game
from steca_gym.envs.alfworld.oracle import plan

from steca_gym.env import TextEnv
from steca_gym.registration import make_text_env

Transcript = list[tuple[str, set[str]]]


def resident_kb() -> float:
    """Kilobytes that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e3


def draw(game: Game, num_steps: int, seed: str) -> list[str]:
    """The commands of a game."""
    rng, state, commands = random.Random(seed), game.start, list[str]()
    for i in range(num_steps):
        said = (
            game.walkthrough[i]
            if i < len(game.walkthrough)
            else command(rng, game, list(engine.admissible(game, state)), 0.1)
        )
        commands.append(said)
        state = engine.act(game, state, said)[0]
    return commands


def play_real(real: Real, data: dict[str, Any], commands: list[str]) -> tuple[float, float, Transcript]:
    """Seconds of start and of all steps, and what was said."""
    begin = time.process_time()
    first, admissible, _ = real.start(data)
    started = time.process_time()
    said: Transcript = [(first, admissible)]
    for c in commands:
        feedback, admissible, *_ = real.step(c)
        said.append((feedback, admissible))
    return started - begin, time.process_time() - started, said


def play_engine(game: Game, commands: list[str], *, with_admissible: bool) -> None:
    state = game.start
    for c in commands:
        state, _, _ = engine.act(game, state, c)
        engine.is_won(game, state)
        if with_admissible:
            engine.admissible(game, state)


def play_env(env: TextEnv, task_id: str, commands: list[str]) -> float:
    """Seconds of the steps; after a win the game starts over, and its reset counts."""
    env.reset(seed=0, options={"task_id": task_id})
    begin = time.process_time()
    for c in commands:
        *_, over, _, _ = env.step(c)
        if over:
            env.reset(seed=0, options={"task_id": task_id})
    return time.process_time() - begin


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def real_memory_kb(data: dict[str, Any]) -> float:
    """What a process grows by for one live game of the real engine, its imports included."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from alfworld_speed import resident_kb; from alfworld_equality import Real\n"
        "before = resident_kb(); real = Real(plain=True); real.start(json.load(open(sys.argv[2]))); real.step('look')\n"
        "print(resident_kb() - before)\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(data, file)
        file.flush()
        argv = [sys.executable, "-c", code, str(Path(__file__).parent), file.name]
        env = dict(os.environ, PYTHONPATH=str(Path(__file__).parent), PYTHONSAFEPATH="1")
        out = subprocess.run(argv, capture_output=True, text=True, check=True, env=env).stdout
    return float(out.split()[-1])


def env_memory_kb(make: Callable[[], TextEnv], count: int) -> float:
    """Kilobytes a live environment adds, each in the midst of an episode."""
    warm = make()
    warm.reset(seed=0)
    gc.collect()
    before, envs = resident_kb(), []
    for i in range(count):
        env = make()
        env.reset(seed=i)
        env.step(env.expert_action() or "look")
        envs.append(env)
    gc.collect()
    return (resident_kb() - before) / len(envs)


def vector_rates(num_envs: int, steps: int) -> tuple[float, float]:
    """Environment steps/s of ``make_vec`` over that many household environments, and kilobytes for each."""
    gc.collect()
    before = resident_kb()
    envs = gymnasium.make_vec("steca_gym.envs:steca/Household-v0", num_envs=num_envs)
    envs.reset(seed=0)
    rng = random.Random(0)
    begin = time.process_time()
    for _ in range(steps):
        envs.step([rng.choice(("look", "inventory", "go to shelf 1", "go to fridge 1")) for _ in range(num_envs)])
    seconds = time.process_time() - begin
    grown = (resident_kb() - before) / num_envs
    envs.close()
    return num_envs * steps / seconds, grown


def table(options: argparse.Namespace) -> list[str]:
    source = official_games(options.data, "valid_seen", options.games, options.seed)
    chosen = [("/".join(name.split("/")[-3:]), data) for name, data, _ in source]
    games = [load_game(data) for _, data in chosen]
    scripts = [draw(g, options.steps, name) for g, (name, _) in zip(games, chosen, strict=True)]
    total = sum(map(len, scripts))

    sides: dict[str, tuple[float, float]] = {}
    transcripts: dict[str, list[Transcript]] = {}
    for label, plain in (("plain", True), ("kept", False)):
        real = Real(plain=plain)
        played = [play_real(real, data, script) for (_, data), script in zip(chosen, scripts, strict=True)]
        starts = statistics.median(p[0] for p in played)
        sides[label] = total / sum(p[1] for p in played), starts
        transcripts[label] = [p[2] for p in played]
    differences = 0
    for i, (game, script) in enumerate(zip(games, scripts, strict=True)):
        state, text = game.start, engine.intro(game)
        for step, said in enumerate(["", *script]):
            if step:
                state, text, _ = engine.act(game, state, said)
            mine = (text, set(engine.admissible(game, state)))
            differences += sum(mine != transcripts[label][i][step] for label in sides)

    def all_games(with_admissible: bool) -> None:
        for game, script in zip(games, scripts, strict=True):
            play_engine(game, script, with_admissible=with_admissible)

    def env_rate(with_admissible: bool) -> float:
        env = TextEnv(AlfredWorld(official), split="valid_seen", horizon=10**9, with_admissible=with_admissible)
        rounds = [
            sum(play_env(env, name, s) for (name, _), s in zip(chosen, scripts, strict=True))
            for _ in range(options.rounds)
        ]
        return total / statistics.median(rounds)

    official = OfficialGames(options.data)
    bare, listed = (total / median_seconds(lambda a=a: all_games(a), options.rounds) for a in (False, True))
    env_bare, env_listed = env_rate(False), env_rate(True)

    loads, resets, saves, restores, oracle = [], [], [], [], []
    env = TextEnv(AlfredWorld(official), split="valid_seen", horizon=10**9)
    other = TextEnv(AlfredWorld(official), split="valid_seen", horizon=10**9)
    for (name, _), game, script in zip(chosen, games, scripts, strict=True):
        official._games.clear()
        loads.append(median_seconds(lambda n=name: env.reset(options={"task_id": n}), 1))
        resets.append(median_seconds(lambda n=name: [env.reset(options={"task_id": n}) for _ in range(100)], 3) / 100)
        for c in script[: len(game.walkthrough) // 2]:
            env.step(c)
        saves.append(median_seconds(lambda: [env.snapshot() for _ in range(1000)], 3) / 1000)
        token = env.snapshot()
        restores.append(median_seconds(lambda t=token: [other.restore(t) for _ in range(1000)], 3) / 1000)
        state = game.start
        for c in script:
            if not engine.is_won(game, state):
                begin = time.process_time()
                plan(game, state)
                oracle.append(time.process_time() - begin)
            state = engine.act(game, state, c)[0]
    lengths = [(len(plan(g, g.start) or ()), len(g.walkthrough)) for g in games]

    memory_real = real_memory_kb(chosen[0][1])
    memory_official = env_memory_kb(lambda: TextEnv(AlfredWorld(official), split="valid_seen", horizon=100), 2000)
    memory_household = env_memory_kb(lambda: make_text_env(household), 2000)
    vector_rate, vector_kb = vector_rates(options.num_envs, 5)

    plain, kept = sides["plain"][0], sides["kept"][0]
    ms, us = 1e3, 1e6
    return [
        "| | ALFWorld 0.4.2 | the same, parsed texts kept | our engine | our `TextEnv` | goal |",
        "|---|---:|---:|---:|---:|---|",
        f"| steps/s, answer + admissible commands | {plain:.1f} | {kept:.0f} | {listed:,.0f} ({listed / plain:,.0f}x, "
        f"{listed / kept:,.0f}x) | {env_listed:,.0f} ({env_listed / plain:,.0f}x, {env_listed / kept:,.0f}x) | 300x |",
        f"| steps/s without admissible commands | always computed | | {bare:,.0f} | {env_bare:,.0f} | 20,000 |",
        f"| load + reset of an official game | {sides['plain'][1] * ms:,.0f} ms | {sides['kept'][1] * ms:,.0f} ms | | "
        f"{statistics.median(loads) * ms:.1f} ms (at most {max(loads) * ms:.1f}) | 10 ms |",
        f"| reset of a game that was loaded before | the same | the same | | {statistics.median(resets) * us:.0f} us | 1 ms |",
        f"| snapshot | none | none | a reference | {statistics.median(saves) * us:.1f} us | 20 us |",
        f"| restore, in another environment | none | none | a reference | {statistics.median(restores) * us:.1f} us | 20 us |",
        f"| memory of a live environment, official games | {memory_real / 1e3:,.0f} MB, one a process | | | "
        f"{memory_official:.1f} kB | 200 kB |",
        f"| memory of a live environment, household games | | | | {memory_household:.1f} kB | 200 kB |",
        f"| `make_vec`, {options.num_envs:,} household environments | cannot | cannot | | {vector_rate:,.0f} steps/s, "
        f"{vector_kb:.1f} kB each | |",
        f"| expert's plan from any state | | | {statistics.median(oracle) * us:.0f} us (at most {max(oracle) * ms:.1f} ms) | | |",
        "",
        f"{len(games)} games of valid_seen, {total:,} steps; {differences} differing answers or command sets, both real "
        f"columns against ours. Our plans have {sum(a for a, _ in lengths) / len(lengths):.1f} commands on average, the "
        f"official walkthroughs of these games {sum(b for _, b in lengths) / len(lengths):.1f}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or .tar.xz of official games, with valid_seen")
    parser.add_argument("--games", type=int, default=8, help="official games to play")
    parser.add_argument("--steps", type=int, default=40, help="commands a game")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of ours; medians are printed")
    parser.add_argument("--num-envs", type=int, default=2000, help="environments of the vectorized path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table here")
    options = parser.parse_args()
    lines = [
        "# ALFWorld's engine and ours, side by side",
        "",
        f"Command: `python benchmarks/alfworld_speed.py --data DATA --games {options.games} --steps {options.steps} "
        f"--rounds {options.rounds} --num-envs {options.num_envs} --seed {options.seed}`",
        f"Machine: {machine_line('alfworld', 'textworld', 'fast_downward_textworld', 'gymnasium')}",
        "",
        *table(options),
    ]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
