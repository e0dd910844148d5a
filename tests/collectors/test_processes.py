"""Worker processes give the same episodes as this process, and losing one costs one episode at most."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import signal
import subprocess
import sys
import threading

import pytest
from steca_gym.agents.scripted import ExpertAgent, RandomAgent

from steca_gym.agent import render_turn
from steca_gym.cli.composing import compose
from steca_gym.collectors import Collector, EpisodeRequest, InProcess, Processes
from steca_gym.collectors.executors.pool import Pending, PoolWorker
from steca_gym.collectors.transports import WorkerEnd
from steca_gym.errors import ConfigError, WorldError
from steca_gym.registry import executors
from steca_gym.runs import RunContext
from steca_gym.runs.context import read_config
from tests.collectors.hazards import Forgetful, make, make_nothing, unpicklable
from tests.fakes import FakeAgent, StreamingFakeAgent

TASKS = [f"corridor-{n}" for n in (1, 2, 3, 4, 5)]


@pytest.fixture(scope="module")
def workers():
    """Two workers for all tests that lose none."""
    executor = Processes(num_workers=2)
    yield executor
    executor.close()


def requests(count=20, **kwargs):
    return [EpisodeRequest(task_id=TASKS[i % 5], seed=100 + i, **kwargs) for i in range(count)]


def say(*actions):
    """Answers for the episode of seed 101: an action a turn, ``right`` after the last; all others go right."""
    return lambda r: render_turn("", actions[r.turn] if r.seed == 101 and r.turn < len(actions) else "right")


def seen(episodes, *, forks=True):
    """All of an episode but the random part of its forks' names."""
    return [
        (
            e.trajectory,
            e.state_key,
            e.num_env_steps,
            [(f.fork_id.split("/")[1], f.snapshot, f.prefix, f.state_key) for f in e.forks],
        )
        for e in episodes
    ]


def runs(pid):
    """Whether a process is there and has not ended."""
    return not ended(pid, patience_s=0.0)


def ended(pid, patience_s=20.0):
    """Wait for the end of a process that need not be a child of ours."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience_s)[0])
    finally:
        os.close(handle)


# -- the same episodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_save", [True, False])
@pytest.mark.parametrize("agent", [RandomAgent, ExpertAgent])
def test_episodes_equal_those_of_this_process(workers, tmp_path, agent, can_save):
    factory = functools.partial(make, str(tmp_path), can_save=can_save)
    asked = requests(capture=True) + requests(5, max_agent_turns=2)
    here = Collector(factory, agent(), num_envs=7).run(asked)
    there = Collector(factory, agent(), num_envs=7, executor=workers).run(asked)
    assert seen(there) == seen(here)
    assert any(len(e.forks) > 3 for e in there)


@pytest.mark.parametrize("can_save", [True, False])
def test_forks_cross_processes_both_ways(workers, tmp_path, can_save):
    factory = functools.partial(make, str(tmp_path), can_save=can_save)

    def rest(episodes):
        return [
            EpisodeRequest(task_id=f.snapshot.task_id, seed=7, start=f, script=e.trajectory.steps[:1])
            for e in episodes
            for f in e.forks
        ]

    here = Collector(factory, RandomAgent())
    there = Collector(factory, RandomAgent(), executor=workers)
    from_here, from_there = here.run(requests(5, capture=True)), there.run(requests(5, capture=True))
    expected = seen(here.run(rest(from_here)))
    assert seen(there.run(rest(from_here))) == expected
    assert seen(here.run(rest(from_there))) == expected
    assert seen(there.run(rest(from_there))) == expected
    assert (here.ledger.total().num_replayed_steps == 0) == can_save
    assert there.ledger.total().num_replayed_steps == here.ledger.total().num_replayed_steps


def test_streaming_agents_and_batches_see_the_same(workers, tmp_path):
    def answer(request):
        return render_turn(f"turn {request.turn}", ("right", "left", "open")[(request.seed + request.turn) % 3])

    factory = functools.partial(make, str(tmp_path))
    batching, batching_there, streaming = FakeAgent(answer), FakeAgent(answer), StreamingFakeAgent(answer)
    here = Collector(factory, batching, num_envs=4).run(requests())
    there = Collector(factory, batching_there, num_envs=4, executor=workers).run(requests())
    streamed = Collector(factory, streaming, num_envs=4, executor=workers).run(requests())
    assert seen(there) == seen(here) == seen(streamed)
    sizes = [[(r.seed, r.turn) for r in batch] for batch in batching.batches]
    assert [[(r.seed, r.turn) for r in batch] for batch in batching_there.batches] == sizes
    assert set(streaming.released) == {r.episode_id for batch in streaming.batches for r in batch}


def test_an_exception_in_the_world_is_the_same_data(workers, tmp_path):
    factory = functools.partial(make, str(tmp_path))
    agent = FakeAgent(say("right", "crash"))
    here = Collector(factory, agent, num_envs=2).run([*requests(4), EpisodeRequest(task_id="nowhere", seed=0)])
    collector = Collector(factory, agent, num_envs=2, executor=workers)
    there = collector.run([*requests(4), EpisodeRequest(task_id="nowhere", seed=0)])
    assert seen(there) == seen(here)
    assert there[1].trajectory.error == "RuntimeError: the corridor fell down"
    assert collector.ledger.total().num_failed_episodes == 2
    assert collector.ledger.total().num_retried_episodes == 0


def test_an_agent_that_breaks_frees_its_environment(workers, tmp_path):
    def answer(request):
        if request.seed == 101:
            raise LookupError("no idea")
        return "Action: right"

    collector = Collector(functools.partial(make, str(tmp_path)), FakeAgent(answer), executor=workers)
    for _ in range(2):
        episodes = collector.run(requests(3))
        assert [e.trajectory.status for e in episodes] == ["truncated", "error", "truncated"]


def test_what_a_worker_holds(workers, tmp_path, capfd):
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401 - the parent has it; a worker must not get it
    agent = FakeAgent(say("look around", "print"))
    there = Collector(functools.partial(make, str(tmp_path)), agent, executor=workers).run(requests(2))
    assert there[1].trajectory.steps[0].observation == "modules [] devices ''"
    assert capfd.readouterr().out == ""


# -- workers stay --------------------------------------------------------------------------------------------


def test_workers_are_started_once_for_several_runs_collectors_and_factories(workers, tmp_path):
    pids = []
    for horizon in (8, 8, 9):
        collector = Collector(
            functools.partial(make, str(tmp_path), horizon=horizon),
            FakeAgent(lambda _: "Action: left"),
            executor=workers,
        )
        for _ in range(2):
            assert all(len(e.trajectory) == horizon for e in collector.run(requests(4)))
            pids.append(workers.worker_pids)
    assert len(pids[0]) == 2 and set(pids) == {pids[0]}
    cost = collector.ledger.total()
    assert 0 < cost.seconds_workers and cost.seconds == pytest.approx(
        cost.seconds_model + cost.seconds_environment + cost.seconds_framework
    )


@pytest.mark.parametrize("kind", [InProcess, Processes])
def test_an_executor_is_used_by_one_run_at_a_time(kind, tmp_path, request):
    executor = request.getfixturevalue("workers") if kind is Processes else InProcess()
    factory = functools.partial(make, str(tmp_path))
    inner = Collector(factory, ExpertAgent(), executor=executor)
    outer = Collector(factory, FakeAgent(lambda _: inner.run(requests(1)) and ""), executor=executor)
    episode = outer.run(requests(1))[0]
    assert episode.trajectory.error.startswith("WorldError: the executor has 1 episodes of another run in progress")


# -- workers that are lost -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("die", "its worker died (SIGKILL)"),
        ("leave", "its worker died (exit code 3)"),
        ("hang", "a step took longer than step_timeout_s=1 s; its worker was ended"),
    ],
)
def test_a_worker_that_is_always_lost_costs_its_episode_only(tmp_path, action, reason):
    asked = requests(6)
    factory = functools.partial(make, str(tmp_path))
    whole = Collector(factory, FakeAgent(say())).run(asked)
    with Processes(num_workers=1, step_timeout_s=1.0) as executor:
        collector = Collector(factory, FakeAgent(say("right", action)), num_envs=4, executor=executor)
        episodes = collector.run(asked)
    failed = episodes.pop(1).trajectory
    assert (failed.status, len(failed)) == ("error", 1)
    assert failed.error == f"WorldError: {reason} (task 'corridor-2', after 1 steps)"
    assert seen(episodes) == seen([e for i, e in enumerate(whole) if i != 1])
    cost = collector.ledger.total()
    assert (cost.num_retried_episodes, cost.num_failed_episodes, cost.num_episodes) == (1, 1, 6)
    assert cost.num_replayed_steps > 0  # the others of the same worker were brought back


@pytest.mark.parametrize("can_save", [True, False])
@pytest.mark.parametrize("kind", [FakeAgent, StreamingFakeAgent])
def test_a_second_try_gives_the_whole_episode(tmp_path, can_save, kind):
    factory = functools.partial(make, str(tmp_path), can_save=can_save)
    agent = kind(say("right", "die once", "open"))
    with Processes(num_workers=1) as executor:
        collector = Collector(factory, agent, num_envs=4, executor=executor)
        there = collector.run(requests(6, capture=True))
    # In this process the world has had its accident already.
    here = Collector(factory, FakeAgent(say("right", "die once", "open"))).run(requests(6, capture=True))
    assert seen(there) == seen(here)
    assert there[1].trajectory.won and there[1].trajectory.actions == ("right", "die once", "open")
    cost = collector.ledger.total()
    assert (cost.num_retried_episodes, cost.num_failed_episodes) == (1, 0)
    assert cost.num_env_steps == sum(e.num_env_steps for e in there) + 1  # the lost step after "right" is not known
    assert len(agent.released) == 7


def test_a_worker_lost_between_steps_costs_nothing(tmp_path):
    executor = Processes(num_workers=2)

    def answer(request):
        if request.seed == 101 and request.turn == 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(executor.worker_pids[0], signal.SIGKILL)
            assert ended(executor.worker_pids[0])
        return render_turn("", "right")

    factory = functools.partial(make, str(tmp_path))
    with executor:
        collector = Collector(factory, FakeAgent(answer), executor=executor)
        there = collector.run(requests(6, capture=True))
    assert (tmp_path / "killed").exists()
    assert seen(there) == seen(Collector(factory, FakeAgent(say())).run(requests(6, capture=True)))
    cost = collector.ledger.total()
    assert (cost.num_retried_episodes, cost.num_failed_episodes) == (0, 0)
    assert cost.num_replayed_steps == 6  # three episodes of two steps each


def test_a_lost_fork_is_tried_again_from_the_fork(tmp_path):
    factory = functools.partial(make, str(tmp_path))
    fork = (
        Collector(factory, FakeAgent(say()))
        .run([EpisodeRequest(task_id="corridor-5", seed=101, capture=True)])[0]
        .forks[2]
    )
    with Processes(num_workers=1) as executor:
        collector = Collector(factory, FakeAgent(say("", "", "die once")), executor=executor)
        episode = collector.run([EpisodeRequest(task_id="corridor-5", seed=101, start=fork)])[0]
    assert episode.trajectory.actions == ("right", "right", "die once", *["right"] * 5)
    assert collector.ledger.total().num_retried_episodes == 1


# -- what cannot be sent -------------------------------------------------------------------------------------


def test_a_snapshot_that_cannot_be_pickled_fails_its_episode(workers, tmp_path):
    factory = functools.partial(make, str(tmp_path), token=unpicklable)
    collector = Collector(factory, FakeAgent(say()), executor=workers)
    captured, plain = collector.run([*requests(1, capture=True), *requests(1)])
    assert captured.trajectory.status == "error" and plain.trajectory.status == "truncated"
    assert "cannot be sent to the collector's process (TypeError: cannot pickle" in captured.trajectory.error
    fork = Collector(factory, FakeAgent(say())).run(requests(1, capture=True))[0].forks[1]
    sent = collector.run([EpisodeRequest(task_id=TASKS[0], seed=0, start=fork), *requests(1)])
    assert [e.trajectory.status for e in sent] == ["error", "truncated"]
    assert "a job cannot be sent to a worker" in sent[0].trajectory.error
    assert collector.ledger.total().num_retried_episodes == 0


def test_a_factory_that_cannot_be_sent_is_one_clear_line(tmp_path):
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"^make_env cannot be sent to a worker \(TypeError: .*\); give a"):
        Collector(lambda: lock and make(str(tmp_path)), ExpertAgent(), executor=Processes()).run(requests(1))


def test_a_factory_that_fails_in_the_worker_stops_the_run(tmp_path):
    executor = Processes(num_workers=1)
    with pytest.raises(ConfigError, match=r"^make_env cannot be loaded in a worker \(LookupError: nobody here"):
        Collector(Forgetful(), ExpertAgent(), executor=executor).run(requests(1))
    with pytest.raises(ConfigError, match="^there is no such corridor$"):
        Collector(make_nothing, ExpertAgent(), executor=executor).run(requests(1))
    assert executor.worker_pids == ()


def test_workers_that_never_start_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    executor = Processes(num_workers=2)
    with pytest.raises(WorldError, match=r"workers do not start: .*\(exit code 1\)"):
        Collector(functools.partial(make, str(tmp_path)), ExpertAgent(), executor=executor).run(requests(2))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(WorldError, match="a worker process did not start"):
        Collector(functools.partial(make, str(tmp_path)), ExpertAgent(), executor=executor).run(requests(2))


# -- nothing is left behind ----------------------------------------------------------------------------------


def test_an_interrupt_and_close_leave_no_process_behind(tmp_path):
    executor = Processes(num_workers=2)
    pids = []

    def answer(request):
        if request.turn < 2:
            return render_turn("", "start a child" if request.seed == 100 and request.turn == 0 else "right")
        pids.extend([*executor.worker_pids, int((tmp_path / "child").read_text())])
        raise KeyboardInterrupt

    collector = Collector(functools.partial(make, str(tmp_path)), FakeAgent(answer), executor=executor)
    with pytest.raises(KeyboardInterrupt):
        collector.run(requests(3))
    assert len(pids) == 3 and all(map(ended, pids))
    # The collector is still good, and closing is in order, twice too.
    collector.agent = FakeAgent(say("start a child"))
    collector.run([EpisodeRequest(task_id="corridor-5", seed=101)])
    pids = [*executor.worker_pids, int((tmp_path / "child").read_text())]
    assert all(map(runs, pids))
    collector.close()
    assert all(map(runs, pids)), "a collector does not close an executor that it was given"
    executor.close()
    assert all(map(ended, pids)) and executor.worker_pids == ()
    executor.close()


def test_a_forgotten_executor_ends_its_workers(tmp_path):
    executor = Processes(num_workers=1)
    Collector(functools.partial(make, str(tmp_path)), ExpertAgent(), executor=executor).run(requests(1))
    (pid,) = executor.worker_pids
    del executor
    gc.collect()
    assert ended(pid)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import functools, os, sys; from steca_gym.collectors import *; from tests.collectors.hazards import make\n"
        "from tests.fakes import FakeAgent\n"
        "agent = FakeAgent(lambda r: 'Action: hang' if r.turn else 'Action: right')\n"
        "class Told(Processes):\n"
        "    def submit(self, episode_id, job):\n"
        "        super().submit(episode_id, job)\n"
        "        print(*self.worker_pids, flush=True)\n"
        "Collector(functools.partial(make, sys.argv[1]), agent, executor=Told(num_workers=1)).run(\n"
        "    [EpisodeRequest(task_id='corridor-5', seed=0)])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stderr is not None
    pid = [int(parent.stdout.readline()) for _ in range(3)][0]  # entered, right, hang
    assert runs(pid)
    parent.kill()
    # The worker holds the other end of its parent's standard error: the end of it is the worker's end.
    assert parent.stderr.read() == ""
    parent.communicate()
    assert ended(pid)


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "num_workers must be >= 1, got 0"),
        ({"step_timeout_s": 0.0}, "step_timeout_s must be > 0 seconds or null, got 0.0"),
        ({"start_timeout_s": -1.0}, "start_timeout_s must be > 0 seconds or null, got -1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Processes(**settings)


def test_a_run_takes_the_executor_from_its_configuration(tmp_path):
    def executor(*overrides):
        config, _ = read_config(compose(list(overrides)))
        return RunContext(config, tmp_path).executor

    made = executor("executor=processes", "executor.num_workers=3", "executor.step_timeout_s=5")
    assert isinstance(made, Processes) and (made.num_workers, made.step_timeout_s) == (3, 5)
    assert isinstance(executor(), InProcess)
    with pytest.raises(ConfigError, match="num_workers must be >= 1, got 0"):
        executor("executor=processes", "executor.num_workers=0")


def test_executors_are_made_by_name_or_by_module_and_object():
    made = executors.make({"name": "processes", "num_workers": 3, "step_timeout_s": 5})
    assert isinstance(made, Processes) and (made.num_workers, made.step_timeout_s) == (3, 5)
    assert isinstance(executors.make({"name": "local"}), InProcess)
    assert isinstance(executors.make({"name": "steca_gym.collectors:InProcess"}), InProcess)
    with pytest.raises(ConfigError, match="num_workers must be >= 1, got 0"):
        executors.make({"name": "processes", "num_workers": 0})


def test_time_limits_follow_what_a_worker_does():
    worker = PoolWorker(1)
    assert worker.seconds_left(1.0, 100.0) is None
    worker.give(Pending(1, "a", makes_env=True, num_steps=3))
    worker.give(Pending(2, "b", makes_env=False, num_steps=1))
    assert worker.is_starting and 50 < worker.seconds_left(1.0, 100.0) <= 100
    worker.ready = True
    worker.sign_of_life(has_env=True)
    assert not worker.is_starting and 1 < worker.seconds_left(1.0, 100.0) <= 3
    assert worker.answered().episode_id == "a"
    assert worker.seconds_left(1.0, 100.0) <= 1 and worker.seconds_left(None, 100.0) is None


@pytest.mark.parametrize(
    ("begun", "ready", "blamed"), [(7, True, True), (6, True, False), (None, True, True), (None, False, False)]
)
def test_a_lost_worker_is_blamed_for_the_job_that_it_was_doing(begun, ready, blamed):
    worker = PoolWorker(1, ready=ready)
    job = Pending(7, "a", makes_env=False, num_steps=1)
    worker.give(job)
    assert worker.take_blame(WorkerEnd("SIGKILL", begun)) == (job if blamed else None)
    assert len(worker.pending) == (0 if blamed else 1)
