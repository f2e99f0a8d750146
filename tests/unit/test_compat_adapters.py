"""Adapters for other services' clients are addresses first and code later."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.compat import ROUTES, load_adapter

START = """
import sys
from app import create_app
from config.settings import Settings
app = create_app(Settings(_env_file=None, redis_url="redis://127.0.0.1:1/0"))
modules = lambda: {name for name in sys.modules if name.startswith("app.compat.")}
loaded = lambda: sorted(modules() - {"app.compat.adapters"})
print(loaded())
client = app.test_client()
client.post("/v2/embed", data=b"nonsense")
print(loaded())
print(sorted({path for path in client.get("/openapi.json").json["paths"]} & {"/v2/embed", "/embed", "/info"}))
"""


@pytest.mark.parametrize("name", ROUTES)
def test_an_adapter_has_the_routes_that_the_app_has_for_it(name: str) -> None:
    assert set(load_adapter(name).views) == set(ROUTES[name])


def test_an_adapter_is_loaded_by_its_first_call_and_all_are_described(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    at_start, after_call, described = done.stdout.splitlines()
    assert at_start == "[]"
    assert after_call == "['app.compat.cohere']"
    assert described == "['/embed', '/info', '/v2/embed']"
