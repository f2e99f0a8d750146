"""A program that answers as nvidia-smi does, to be put first on PATH."""

import os
import shlex
import stat
from pathlib import Path

import pytest

__all__ = ["SLICED", "TWO_GPUS", "put_on_path"]

TWO_GPUS = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""
SLICED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 3g.40gb     Device  0: (UUID: MIG-11112222-d268)
  MIG 3g.40gb     Device  1: (UUID: MIG-33334444-d268)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, listed: str, *, buses: str = "", code: int = 0) -> None:
    """Answer with this list and these bus IDs (`uuid, bus` lines), and end with this code."""
    program = folder / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$1" in -L) printf %s {shlex.quote(listed)} ;; *) printf %s {shlex.quote(buses)} ;; esac\n'
        f"exit {code}\n",
        "utf-8",
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
