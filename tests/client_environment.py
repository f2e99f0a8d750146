"""The clients' own environments under `build/clients`, made when a test first needs them.

The libraries are no part of the project's environment: litellm wants an older openai and huggingface-hub than we have,
chromadb brings kubernetes and onnxruntime, and langsmith hooks itself into every pytest.
Their versions are the dependency group `clients`, locked in `tests/clients.lock`; the Node SDK has no dependencies.
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

from app import token_ids

__all__ = ["LOCK", "Unavailable", "client_variables", "node_folder", "python_program", "vocabulary_folder"]

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "tests" / "clients.lock"
BUILD = ROOT / "build" / "clients"
NODE_PACKAGE = "openai@6.49.0"
_INSTALL_TIMEOUT_S = 840
# tiktoken names a cached file by the SHA-1 of the address that it would load.
_VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"


class Unavailable(Exception):
    """The environment cannot be made on this machine; the message says why."""


def python_program() -> Path:
    """Return the interpreter that has the clients.

    Raises:
        Unavailable: pip could not install them, for instance without a network.
    """
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = BUILD / f"python-{digest}"
    program = folder / "bin" / "python"

    def install() -> None:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(program), "-m", "pip", "install", "--quiet", "--no-input", "--requirement", str(LOCK))

    _make_once(folder, install)
    return program


def node_folder() -> Path:
    """Return a folder with `node_modules`.

    Raises:
        Unavailable: there is no node and npm, or npm could not install the package.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Unavailable("node and npm are not on PATH")
    folder = BUILD / f"node-{NODE_PACKAGE}"
    options = ("--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--prefix", str(folder))
    _make_once(folder, lambda: _run("npm", "install", *options, NODE_PACKAGE))
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
