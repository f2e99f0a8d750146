"""Both distributions, built as wheels and installed into empty environments, run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stack.embedded_redis import EmbeddedServer, free_port
from tests.support.polling import wait_until

ROOT = Path(__file__).parents[2]
SERVER = ["app", "config", "stack", "tasks", "workers"]
# An own environment needs a package index.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload] # of subprocess
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def build(project: Path, names: list[str], folder: Path) -> Path:
    """Build in a copy: setuptools takes over whatever an earlier build left beside the sources."""
    for name in names:
        source, target = project / name, folder / "project" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "project")
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, extras: str, folder: Path) -> Path:
    """Return the folder of the commands of an environment that has the wheel and what it asks for."""
    venv.create(folder, with_pip=True)
    lock = ROOT / "requirements.lock"
    run(folder / "bin" / "pip", "install", "--quiet", "--constraint", lock, f"{wheel}{extras}", env=clean())
    return folder / "bin"


def clean(**variables: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TWOLANE_", "PYTHON"))}
    return {**own, **variables}


@pytest.fixture(scope="module")
def server_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, ["pyproject.toml", "README.md", "LICENSE", *SERVER], tmp_path_factory.mktemp("server-wheel"))


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        ROOT / "client", ["pyproject.toml", "README.md", "LICENSE", "twolane"], tmp_path_factory.mktemp("client-wheel")
    )


@pytest.fixture(scope="module")
def server_commands(server_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the server's wheel and what its web tier needs."""
    return install(server_wheel, "[web]", tmp_path_factory.mktemp("server-environment") / "venv")


@pytest.fixture(scope="module")
def web(server_commands: Path, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a web server that was installed from its wheel."""
    folder, port = tmp_path_factory.mktemp("web"), free_port()
    environment = clean(TWOLANE_REDIS_URL=server.url, TWOLANE_PORT=str(port), TWOLANE_DATA_DIR=str(folder / "data"))
    process = subprocess.Popen([server_commands / "twolane-server", "web"], cwd=folder, env=environment)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/livez").is_success
        except httpx.HTTPError:
            return False

    try:
        wait_until(answers, 60)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_the_wheels_share_no_file(server_wheel: Path, client_wheel: Path) -> None:
    def tops(wheel: Path) -> set[str]:
        names = zipfile.ZipFile(wheel).namelist()
        return {name.split("/")[0] for name in names if ".dist-info/" not in name}

    assert tops(server_wheel) == set(SERVER)
    assert tops(client_wheel) == {"twolane"}
    assert "twolane/py.typed" in zipfile.ZipFile(client_wheel).namelist()


def test_the_installed_client_talks_to_the_installed_server(client_wheel: Path, web: str, tmp_path: Path) -> None:
    commands = install(client_wheel, "", tmp_path / "venv")
    code = "from twolane import Twolane; print([model.id for model in Twolane().models()])"
    assert run(commands / "python", "-c", code, env=clean(TWOLANE_URL=web)).strip() == "['all-MiniLM-L6-v2']"
    assert json.loads(run(commands / "twolane", "--json", "models", env=clean(TWOLANE_URL=web)))["ready"] is False
    # The client brings nothing of the server, and none of the extras.
    packages = {entry["name"] for entry in json.loads(run(commands / "pip", "list", "--format", "json"))}
    assert packages & {"flask", "celery", "redis", "numpy", "pyarrow", "torch"} == set()


def test_a_program_that_is_not_installed_is_named(server_commands: Path) -> None:
    done = subprocess.run([server_commands / "twolane-server", "worker"], capture_output=True, text=True, check=False)
    assert (done.returncode, "twolane-server[worker]" in done.stderr) == (1, True)
