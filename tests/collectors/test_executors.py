"""Every executor keeps one contract, and the kit finds those that do not."""

from __future__ import annotations

import pytest

from steca_gym.collectors import InProcess, Processes
from steca_gym.errors import ConfigError, WorldError
from steca_gym.testing import check_executor


def test_this_process() -> None:
    check_executor(InProcess).raise_if_failed()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes(num_workers: int) -> None:
    check_executor(lambda: Processes(num_workers=num_workers, step_timeout_s=2.0), isolates=True).raise_if_failed()


@pytest.mark.slow
def test_ray_actors() -> None:
    ray = pytest.importorskip("ray")
    from steca_gym.collectors.transports.ray import RayWorkers

    try:
        report = check_executor(lambda: RayWorkers(num_workers=2, step_timeout_s=5.0, num_cpus=0.5), isolates=True)
    finally:
        ray.shutdown()
    report.raise_if_failed()


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from steca_gym.collectors.transports.ray import RayWorkers

    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'steca-gym\[ray\]'"):
        RayWorkers()


class Shuffled(InProcess):
    def gather(self, wait):  # type: ignore[no-untyped-def]
        return super().gather(wait)[::-1]


class Forgetful(InProcess):
    def gather(self, wait):  # type: ignore[no-untyped-def]
        return super().gather(wait)[1:]


class Careless(InProcess):
    def serve(self, make_env):  # type: ignore[no-untyped-def]
        self.abandon()
        super().serve(make_env)


@pytest.mark.parametrize(
    ("kind", "check"),
    [(Shuffled, "same answers"), (Forgetful, "same answers"), (Careless, "sharing")],
)
def test_the_kit_finds(kind: type[InProcess], check: str) -> None:
    report = check_executor(kind)
    assert check in {r.name for r in report.failed}
    with pytest.raises(WorldError, match=check):
        report.raise_if_failed()
