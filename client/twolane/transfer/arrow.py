"""pyarrow, imported when it is first needed: it is an extra, and takes longer to import than a small command to run."""

import importlib
from typing import Any

from twolane.errors import MissingExtra

__all__ = ["load"]


def load(name: str, extra: str = "parquet") -> Any:
    """Return a module that an extra brings.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] == name.partition(".")[0]:
            raise MissingExtra(extra) from None
        raise
