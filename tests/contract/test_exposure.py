"""A server that other machines can reach does not start without keys, however it is started."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer, free_port
from stack.plan import make_plan
from tests.support.stack_fixture import clean_environment


def run(module: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(data_dir=str(folder / "data"), port=str(free_port()), models="fake", **settings)
    command = [sys.executable, "-m", module]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("module", ["app", "stack.serve"])
def test_no_server_starts_open_to_other_machines(module: str, tmp_path: Path) -> None:
    done = run(module, tmp_path, host="0.0.0.0", redis_url="redis://127.0.0.1:1/0")
    assert done.returncode > 0
    assert "TWOLANE_KEYS_FILE" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("module", ["app", "stack.serve"])
def test_no_server_starts_with_a_bad_keys_file(module: str, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[[keys]]\ntenant = "ada"\nsha256 = "tl-secret"\n')
    done = run(module, tmp_path, keys_file=str(tmp_path / "keys.toml"), redis_url="redis://127.0.0.1:1/0")
    assert done.returncode > 0
    assert "keys[1].sha256" in done.stdout + done.stderr
    assert "tl-secret" not in done.stdout + done.stderr


def test_the_embedded_server_wants_its_password_and_lets_only_its_owner_read_its_files(tmp_path: Path) -> None:
    (tmp_path / "server" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "server" / "appendonlydir").chmod(0o755)
    with EmbeddedServer(tmp_path / "server", password="secret") as server:
        with Redis.from_url(server.url) as owner, Redis(port=server.port) as stranger:
            owner.set("text", "private")
            with pytest.raises(AuthenticationError):
                stranger.get("text")
        written = list((tmp_path / "server").rglob("*"))
        assert any(path.suffix == ".aof" for path in written)
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "server", *written)}
        assert modes == {0o600, 0o700}
        assert "secret" not in " ".join(psutil.Process(server.pid).cmdline())


def test_the_private_server_of_a_stack_has_a_password_that_is_kept(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, models=("fake",))
    first, again = (urlsplit(make_plan(settings).settings.redis_url).password for _ in range(2))
    assert first
    assert first == again
    assert (tmp_path / "redis-password").stat().st_mode & 0o777 == 0o600
