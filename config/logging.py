"""How our processes log: one line an event, to standard error, for people or for machines.

Owns the formats, how loud the libraries are, and that no line holds a password. Configured once by each process's entry
point, never at import.
"""

import logging
import sys
import traceback
from typing import Any

import orjson

from config.log_buffer import BatchingHandler
from config.secrets import mask_secrets
from config.settings import Settings

__all__ = ["configure_logging"]

# Libraries that tell more than an operator wants to read at the level `info`.
_QUIET = (
    *("amqp", "kombu", "celery.worker.consumer.connection", "celery.worker.strategy", "celery.app.trace"),
    *("httpx", "httpcore", "urllib3", "tornado"),
)
_TEXT = "%(asctime)s %(levelname)-7s %(message)s"
_TIME = "%H:%M:%S"
# What every record has; anything else was given as `extra` and belongs into a machine's line.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(settings: Settings, process: str, *, batched: bool = False) -> None:
    """Send all log records of this process to standard error.

    Args:
        settings: `log_level` and `log_format`.
        process: name of the process in a machine's lines, such as `web` or `worker`.
        batched: whether lines come by the hundred a second, and are written together, a moment later.
    """
    # No format of ours names the line of code, and looking for it costs a busy process more than writing the line
    # (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None  # noqa: SLF001 - the way that the documentation names
    handler = BatchingHandler(sys.stderr) if batched else logging.StreamHandler()
    handler.setFormatter(_JsonFormatter(process) if settings.log_format == "json" else _TextFormatter(_TEXT, _TIME))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.NOTSET if settings.log_level == "debug" else logging.WARNING)
    logging.captureWarnings(capture=True)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        line = super().formatMessage(record)
        # Our own messages name their subject; those of libraries need it.
        own = record.name.split(".")[0] in {"app", "config", "stack", "tasks", "workers"}
        return line if own or record.name == "root" else f"{line} [{record.name}]"


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": mask_secrets(record.getMessage()),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = mask_secrets("".join(traceback.format_exception(*record.exc_info)))
        return orjson.dumps(line, default=str).decode()
