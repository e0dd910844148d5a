"""For all tests: one thread per process. Models here are smaller than what a second thread costs, and several test
processes with spinning threads starve each other."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from . import official as official  # noqa: E402 - reads the environment before a test can import alfworld
