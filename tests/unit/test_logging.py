"""Log lines are readable by people or by machines, and libraries do not shout over us."""

import logging

import orjson
import pytest

from config.logging import configure_logging
from config.settings import Settings

pytestmark = pytest.mark.usefixtures("logging_restored")


def test_a_line_for_people_names_the_library_but_not_us(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(_env_file=None), "worker")
    logging.getLogger("workers.boot").info("ready")
    logging.getLogger("redis.client").warning("hm")
    ours, theirs = capsys.readouterr().err.splitlines()
    assert ours.endswith("INFO    ready")
    assert theirs.endswith("WARNING hm [redis.client]")


def test_a_line_for_machines_has_fields_extras_and_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(_env_file=None, log_format="json"), "web")
    try:
        int("no number")
    except ValueError:
        logging.getLogger("app.x").exception("it failed %s", "twice", extra={"request_id": "r-1"})
    line = orjson.loads(capsys.readouterr().err)
    assert (line["level"], line["process"], line["message"]) == ("error", "web", "it failed twice")
    assert line["request_id"] == "r-1"
    assert "ValueError: invalid literal" in line["exception"]


def test_libraries_tell_their_details_only_when_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(_env_file=None), "worker")
    logging.getLogger("celery.app.trace").info("a task ended")
    assert capsys.readouterr().err == ""
    configure_logging(Settings(_env_file=None, log_level="debug"), "worker")
    logging.getLogger("celery.app.trace").info("a task ended")
    assert "a task ended" in capsys.readouterr().err


def test_a_thread_may_make_a_logger_while_pytest_looks_at_all_of_them() -> None:
    for number, _ in enumerate(logging.root.manager.loggerDict.values()):
        logging.getLogger(f"{__name__}.{number % 3}")
