"""`steca review RUN [as=NAME,NAME]`: a page on this machine to approve, refuse and edit a run's corrections.

  steca review runs/mine                      prints a link that works once, until Ctrl-C
  steca review runs/mine as=anna,ben          a link for each of two people
  steca review runs/mine port=8900            a fixed port; 0 takes a free one

Every decision is added to the run's audit trail under the name of who made it; an edited action is executed in the
world before it counts. `review.mode=required` makes training wait for decisions, see docs/governance.md. The server
listens on the loopback interface only.
"""

from __future__ import annotations

import functools
import getpass
import socket
import sys
from typing import TYPE_CHECKING

from steca_gym.cli.options import find_user_modules, read_options
from steca_gym.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from steca_gym.methods.context import RunConfig
    from steca_gym.review.editing import Editor
    from steca_gym.runs import RunFolder


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.review.access import Access
    from steca_gym.runs import RunFolder

    given, paths = read_options("review", args, {"as": None, "port": "0"}, positional=True)
    if len(paths) != 1:
        raise ConfigError(f"review takes one run, got {len(paths)}; e.g. `steca review runs/mine`")
    names = [n.strip() for n in (_user() if given["as"] is None else given["as"]).split(",")]
    if not all(names) or len(set(names)) != len(names) or not all(len(n) <= 80 and n.isprintable() for n in names):
        raise ConfigError(
            f"as= takes names that differ, at least one, separated by commas, got {given['as']!r}; e.g. as=anna,ben"
        )
    run = RunFolder(paths[0])
    run.check_trusted()
    path = run.path / "buffer.sqlite"
    if not path.exists() or not _has_calibrations(run):
        raise DataError(
            f"{str(run.path)!r} holds no calibrations yet; run `steca run run={run.path} until=calibration` first"
        )
    find_user_modules([f"--config-dir={d}" for d in run.record.config_dirs if d])
    listener = _listen(given["port"] or "")
    port = listener.getsockname()[1]
    access = Access()
    from steca_gym.reports.trace import stale_models
    from steca_gym.review.server import ReviewApp

    config = _config(run)
    app = ReviewApp(
        path,
        config=config.review,
        access=access,
        port=port,
        make_editor=functools.partial(make_editor, run),
        title=run.name,
        stale=functools.partial(stale_models, run),
        durability=config.buffer.durability,
    )
    for name in names:
        print(f"{name}: http://127.0.0.1:{port}/?token={access.invite(name)}", flush=True)
    print("each link works once; Ctrl-C ends the server", file=sys.stderr, flush=True)
    import uvicorn

    uvicorn.Server(uvicorn.Config(app.app, log_level="error", server_header=False)).run(sockets=[listener])
    return 0


def make_editor(run: RunFolder) -> Editor:
    """What executes edits in the world of a run."""
    from steca_gym.review.editing import Editor
    from steca_gym.runs.context import RunContext

    context = RunContext(_config(run), run.path)
    return Editor(
        context.make_env,
        context.expert(),
        prompt=context.prompt,
        expert=context.repair_expert(),
        turn_format=context.config.agent.turn_format,
    )


def _config(run: RunFolder) -> RunConfig:
    from omegaconf import OmegaConf

    from steca_gym.runs.context import read_config

    return read_config(OmegaConf.create(dict(run.record.settings)))[0]


def _has_calibrations(run: RunFolder) -> bool:
    with run.buffer() as buffer:
        return bool(buffer.calibration_rows())


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise ConfigError("your user has no name here; say who decides, e.g. as=anna") from error


def _listen(text: str) -> socket.socket:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise ConfigError(f"port must be a number from 0 to 65535, got {text!r}")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", int(text)))
        listener.listen()  # a link works as soon as it is printed
    except OSError as error:
        listener.close()
        raise StorageError(
            f"cannot listen on port {text}: {error.strerror}; choose another port, e.g. port=0"
        ) from error
    return listener
