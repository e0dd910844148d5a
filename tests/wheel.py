"""Build the wheel, install it away from the source, make every environment and compose every config there.

A check on packaging: a forgotten sub-package or YAML file shows here, not at a user's. Dependencies are taken from
the running environment, so nothing is downloaded but the build backend.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROBE = textwrap.dedent(
    """
    import importlib.resources, pathlib, sys
    import gymnasium, steca_gym, steca_gym.envs
    from hydra import compose, initialize_config_module

    site = sys.argv[1]
    assert steca_gym.__file__.startswith(site), steca_gym.__file__
    for name in ("body.html", "page.css", "page.js", "vendor/vega.min.js", "vendor/LICENSE"):
        assert (importlib.resources.files("steca_gym.reports") / "assets" / name).is_file(), name
    from steca_gym.errors import StecaError
    made = []
    for env_id in sorted(i for i in gymnasium.registry if i.startswith("steca/")):
        try:
            gymnasium.make(env_id, disable_env_checker=True).close()
            made.append(env_id)
        except StecaError as error:  # data or an extra that is not here: a clear line is what a user gets
            print("not made:", env_id, "-", error)
    assert "steca/Household-v0" in made, made
    conf = importlib.resources.files("steca_gym.conf")
    groups = {d.name: sorted(f.stem for f in pathlib.Path(str(d)).glob("*.yaml")) for d in conf.iterdir() if d.is_dir()}
    with initialize_config_module("steca_gym.conf", version_base="1.3"):
        for group, choices in groups.items():
            # An agent takes these two under its own keys.
            for choice in choices if group not in ("training", "lora") else ():
                compose("config", overrides=[f"{group}={choice}"])
    print("composed", {group: len(choices) for group, choices in groups.items() if choices})
    """
)


def main() -> int:
    """Return 0 when the installed wheel works from another directory."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", scratch, str(ROOT)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wheel = next(Path(scratch).glob("*.whl"))
        site = Path(scratch) / "site"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
        if top != {"steca_gym"}:
            print(f"the wheel must install steca_gym alone, it holds {sorted(top)}")
            return 1
        # PYTHONPATH comes before the editable finder, so the unpacked wheel is what gets imported.
        env = dict(os.environ, PYTHONPATH=str(site))
        return subprocess.run([sys.executable, "-c", PROBE, str(site)], cwd=scratch, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
