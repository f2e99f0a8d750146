"""The clients' own environments under `build/clients`, made when a test first needs them.

The libraries are no part of the project's environment: litellm wants an older openai and huggingface-hub than we have,
chromadb brings kubernetes and onnxruntime, and langsmith hooks itself into every pytest.
Their versions are the dependency group `clients`, locked in `tests/clients.lock`; those that want an older cohere are
the group `clients-cohere5`, with an environment and a lock of its own. The Node SDKs have next to no dependencies.
"""

import base64
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.inference import token_ids

__all__ = [
    "COHERE5",
    "LOCKS",
    "NEWEST",
    "NODE_PACKAGES",
    "Unavailable",
    "client_variables",
    "installed",
    "node_folder",
    "python_program",
    "run_code",
    "vocabulary_folder",
]

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "clients"
NEWEST = "clients"
COHERE5 = "clients-cohere5"
# By dependency group of pyproject.toml.
LOCKS = {group: ROOT / "tests" / f"{group}.lock" for group in (NEWEST, COHERE5)}
NODE_PACKAGES = {"openai": "6.49.0", "cohere-ai": "8.1.0"}
_INSTALL_TIMEOUT_S = 840
# tiktoken names a cached file by the SHA-1 of the address that it would load.
_VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"


class Unavailable(Exception):
    """The environment cannot be made on this machine; the message says why."""


def installed(install: Callable[[], Path]) -> Path:
    """Install, or skip without a network; on a machine of continuous integration that is a failure."""
    try:
        return install()
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def python_program(group: str = NEWEST) -> Path:
    """Return the interpreter that has the clients of a dependency group.

    Raises:
        Unavailable: pip could not install them, for instance without a network.
    """
    lock = LOCKS[group]
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = BUILD / f"python-{digest}"
    program = folder / "bin" / "python"

    def install() -> None:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(program), "-m", "pip", "install", "--quiet", "--no-input", "--requirement", str(lock))

    _make_once(folder, install)
    return program


def node_folder() -> Path:
    """Return a folder with `node_modules`.

    Raises:
        Unavailable: there is no node and npm, or npm could not install the packages.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("node and npm are not on PATH")
    packages = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
    folder = BUILD / f"node-{'-'.join(packages)}"
    options = ("--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--prefix", str(folder))
    _make_once(folder, lambda: _run("npm", "install", *options, *packages))
    return folder


def vocabulary_folder(folder: Path) -> Path:
    """Write OpenAI's cl100k file from the server's own table into a folder, as tiktoken caches it.

    tiktoken compares the file's SHA-256 with the original's, so a table that is not the same does not pass.
    """
    table = token_ids._load_table()
    lines = (
        b"%b %d\n" % (base64.b64encode(token_ids._token_bytes(table, token)), token)
        for token in range(token_ids._TOKENS)
    )
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha1(_VOCABULARY_URL.encode(), usedforsecurity=False).hexdigest()
    (folder / name).write_bytes(b"".join(lines))
    return folder


def run_code(program: Path | str, code: str, folder: Path, vocabulary: Path, **variables: str) -> str:
    """Run a reader's code in an empty folder and return what it printed; it has to succeed.

    Args:
        program: an interpreter of Python, or `node`.
        code: Python or JavaScript.
        folder: where it is written and run.
        vocabulary: where tiktoken looks for OpenAI's vocabulary; a folder without it will do for most.
        variables: added to its environment.
    """
    file = folder / ("snippet.mjs" if program == "node" else "snippet.py")
    file.write_text(code, "utf-8")
    done = subprocess.run(
        [str(program), str(file)],
        cwd=folder,
        env={**client_variables(vocabulary), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def client_variables(vocabulary: Path) -> dict[str, str]:
    """Return a reader's environment, without telemetry, and with a proxy that refuses whatever leaves the machine."""
    ours = ("TWOLANE_", "OPENAI_", "COHERE_", "CO_", "PYTHON", "PYTEST_")
    nowhere = "http://127.0.0.1:9"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), nowhere),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
        "ANONYMIZED_TELEMETRY": "False",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TIKTOKEN_CACHE_DIR": str(vocabulary),
    }


def _make_once(folder: Path, install: Callable[[], None]) -> None:
    """Fill the folder unless a run before this one, or one beside it, has done so."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / ".ready"
        if not stamp.exists():
            install()
            stamp.touch()


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(command[:4])} failed: {error.stderr.strip()[-600:]}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command[:4])} took more than {_INSTALL_TIMEOUT_S} s") from error
