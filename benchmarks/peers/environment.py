"""Environments of the peers that cannot live in ours, made on first use below `build/` and kept.

Owns what is installed where; how a peer is started is its own module's business. Nothing of a peer is patched.
"""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["ANTSK", "INFINITY", "PeerMissing", "make_infinity", "make_overlay"]

INFINITY = Path("build/bench-infinity")
ANTSK = Path("build/bench-antsk")

# The newest set in which infinity-emb 0.0.78 starts: it needs optimum with BetterTransformer, which needs
# transformers 4.48, which needs numpy 1; the extras `server` and `torch` pin click, typer, rich and uvicorn.
_INFINITY_PINS = (
    *("infinity-emb[server,torch]==0.0.78", "transformers==4.48.3", "optimum==1.27", "numpy==1.26.4"),
    *("pyarrow==19", "datasets==3.6", "pandas==2.2.3"),
)
_ONNX_PINS = ("onnxruntime>=1.23", "onnx>=1.19")
_OVERLAY_PINS = ("fastapi", "uvicorn")


class PeerMissing(RuntimeError):
    """A peer's environment cannot be made here, for instance without a package index; its rows are left out."""


def make_infinity() -> Path:
    """Return the interpreter of infinity's environment, made first if it is not there; torch is the same as ours.

    Raises:
        PeerMissing: the packages cannot be installed.
    """
    python = INFINITY / "bin" / "python"
    pins = (*_INFINITY_PINS, *_ONNX_PINS)
    if not _is_made(INFINITY, pins):
        print(f"making {INFINITY} with infinity-emb and its own torch: some minutes, once")
        venv.create(INFINITY, clear=True, with_pip=True)
        _install_torch(python)
        _install([str(python), "-m", "pip", "install", *pins], INFINITY)
        _mark(INFINITY, pins)
    return python.absolute()


def make_overlay() -> Path:
    """Return a folder with fastapi and uvicorn, to be put in front of our own environment's packages.

    Raises:
        PeerMissing: the packages cannot be installed.
    """
    if not _is_made(ANTSK, _OVERLAY_PINS):
        _install([sys.executable, "-m", "pip", "install", "--target", str(ANTSK), *_OVERLAY_PINS], ANTSK)
        _mark(ANTSK, _OVERLAY_PINS)
    return ANTSK.absolute()


def _install_torch(python: Path) -> None:
    """Install our version of torch: its CPU build if we have that and the index has it, else the default one."""
    version = metadata.version("torch")
    try:
        _install([str(python), "-m", "pip", "install", f"torch=={version}"], INFINITY)
    except PeerMissing:
        if "+" not in version:
            raise
        _install([str(python), "-m", "pip", "install", f"torch=={version.split('+')[0]}"], INFINITY)


def _install(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(
        [*command, "--quiet", "--disable-pip-version-check"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PeerMissing(f"{folder} cannot be made: {done.stderr.strip()[-500:]}")


def _stamp(pins: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()


def _is_made(folder: Path, pins: Sequence[str]) -> bool:
    stamp = folder / ".made"
    return stamp.exists() and stamp.read_text() == _stamp(pins)


def _mark(folder: Path, pins: Sequence[str]) -> None:
    """Write the stamp last, so that a half-made environment is made again."""
    (folder / ".made").write_text(_stamp(pins))
