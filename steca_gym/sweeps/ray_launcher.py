"""``hydra/launcher=ray``: the jobs of a sweep on a Ray cluster.

The published Hydra launcher brings the clients of a cloud along and pins their versions; this one needs Ray alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher

from steca_gym.errors import ConfigError


class RayLauncher(Launcher):
    """Each job is a Ray task; a task whose worker is lost is run again by Ray, and continues in its run's folder.

    All nodes need the runs' folder in the same place (a shared file system).

    Args:
        address: of a cluster, or ``auto``; None: a Ray of this machine's own.
        num_cpus_per_job: processors that a job takes, > 0.
        num_gpus_per_job: accelerators that a job takes, >= 0.
        max_retries: times that a job is run again where its worker is lost, >= 0.
        init: further arguments of ``ray.init``.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus_per_job: float = 1,
        num_gpus_per_job: float = 0,
        max_retries: int = 2,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        """See the class."""
        if num_cpus_per_job <= 0 or num_gpus_per_job < 0 or max_retries < 0:
            raise ConfigError(
                "num_cpus_per_job must be > 0, num_gpus_per_job and max_retries >= 0, got "
                f"{num_cpus_per_job}, {num_gpus_per_job}, {max_retries}"
            )
        self.address, self.max_retries = address, max_retries
        self.resources = {"num_cpus": num_cpus_per_job, "num_gpus": num_gpus_per_job}
        self.init = dict(init or {})

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """See Hydra's ``Launcher``."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Run the jobs; one ``JobReturn`` each, in order."""
        import ray
        from hydra.core.singleton import Singleton
        from hydra.core.utils import JobReturn, JobStatus
        from ray.exceptions import RayError

        from steca_gym.collectors.transports.ray import start_ray

        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        started_here = not ray.is_initialized()
        if started_here:
            start_ray(**{"address": self.address, "log_to_driver": True, "include_dashboard": False, **self.init})
        try:
            task = ray.remote(_run_one).options(max_retries=self.max_retries, **self.resources)
            state = ray.put(Singleton.get_state())
            context = ray.put((self.hydra_context, self.config, self.task_function))
            refs = [task.remote(initial_job_idx + i, list(job), context, state) for i, job in enumerate(job_overrides)]
            results: list[Any] = []
            for job, ref in zip(job_overrides, refs, strict=True):
                try:
                    results.append(ray.get(ref))
                except RayError as error:  # it alone is lost
                    failed = JobReturn()
                    failed.overrides, failed.status, failed.return_value = list(job), JobStatus.FAILED, error
                    results.append(failed)
            return results
        finally:
            if started_here:
                ray.shutdown()


def _run_one(number: int, overrides: list[str], context: Any, state: Any) -> Any:
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from omegaconf import open_dict

    hydra_context, config, task_function = context
    setup_globals()
    Singleton.set_state(state)
    sweep_config = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = f"{sweep_config.hydra.job.name}_{number}"
        sweep_config.hydra.job.num = number
    HydraConfig.instance().set_config(sweep_config)
    return run_job(
        hydra_context=hydra_context,
        config=sweep_config,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
