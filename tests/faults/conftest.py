"""Settings for the tests of Redis: short leases, which a server is soon up long enough for, and a small window."""

import pytest

from config.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Those of all tests, with a short lease and a small window."""
    return settings.model_copy(update={"lease_s": 1.0, "window": 3})
