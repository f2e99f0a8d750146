"""A server with the fake model for the client to talk to: real processes, started once."""

from collections.abc import Iterator

import pytest

from tests.support.own_stack import OwnStack, opened_stack
from twolane import Twolane


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
