"""No password in a log line, in a listing of settings or in an error at start."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config.logging import configure_logging
from config.secrets import mask_secrets
from config.settings import Settings

ROOT = Path(__file__).parents[2]
AWKWARD = [
    "simple",
    "p@ssword9",
    "a:b",
    "sla/sh",
    "ha#sh",
    "per%cent",
    "per%40cent",
    "qu?stion",
    "&and=",
    "pässwört",
    "@",
    "end@",
]


@pytest.mark.parametrize("password", AWKWARD)
@pytest.mark.parametrize("user", ["", "ada"])
def test_no_part_of_a_password_is_left(user: str, password: str) -> None:
    masked = mask_secrets(f"cannot reach redis://{user}:{password}@host.example:6379/3, trying again")
    assert masked == "cannot reach redis://***@host.example:6379/3, trying again"


def test_secret_query_parameters_are_masked_and_others_stay() -> None:
    url = "s3://bucket/path?region=eu&secret=abc&password=p@ss&access_key=xyz"
    assert mask_secrets("redis://host/0?db=3&password=p%40ss") == "redis://host/0?db=3&password=***"
    assert "abc" not in mask_secrets(url)
    assert "xyz" not in mask_secrets(url)


@pytest.mark.parametrize("text", ["redis://host:6379/0", "no url: a@b.example", "https://host/a?page=2"])
def test_what_holds_no_secret_is_left_as_it_is(text: str) -> None:
    assert mask_secrets(text) == text


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_line_and_its_traceback_hold_no_password(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging(Settings(_env_file=None, log_format=log_format), "test")  # type: ignore[arg-type]
        error = ValueError("redis://:p@ssword9@host refused us")
        logging.getLogger("kombu.connection").error("connecting to redis://:p@ssword9@host failed", exc_info=error)
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(capture=False)
    assert "ssword9" not in (written := capfd.readouterr().err)
    assert written.count("redis://***@host") == 2


@pytest.mark.parametrize("module", ["app", "workers.launch", "stack.serve"])
def test_an_error_at_start_shows_no_secret(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}
    environment |= {
        "TWOLANE_FLOWER_PASSWORD": "Fl0wer-secret",
        "REDIS_URL": "redis://:p@ssword9@127.0.0.1:1/0",
        "TWOLANE_LEASE_S": "100",
        "TWOLANE_JOB_TTL_S": "1",
        "TWOLANE_DATA_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-m", module],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode != 0
    assert "TWOLANE_LEASE_S=100" in run.stdout + run.stderr
    assert "secret" not in run.stdout + run.stderr
    assert "ssword9" not in run.stdout + run.stderr
