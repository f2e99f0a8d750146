"""How many of our modules a small call and a line of a job enter on their way, from HTTP to the vector and back."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, running_worker, settings_of, wait_for_end

ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / package) + "/" for package in ("app", "tasks", "workers", "config"))
# A stranger who follows a text reads so many files at most (decision 0022). Lower these when the way gets shorter.
MOST = {"small call": 56, "job": 70}


class Trace:
    """Records the modules whose functions are called while it is on, in the threads started after it."""

    def __init__(self) -> None:
        self.on = False
        self.modules: list[str] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if self.on and event == "call" and name.startswith(OURS) and frame.f_code.co_name != "<module>":
            module = Path(name).relative_to(ROOT).as_posix()
            if module not in self.modules:
                self.modules.append(module)


@pytest.fixture
def trace() -> Iterator[Trace]:
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    yield trace
    sys.setprofile(None)
    threading.setprofile(None)


def test_a_small_call_and_a_line_of_a_job_enter_few_modules(
    trace: Trace, server: EmbeddedServer, tmp_path: Path
) -> None:
    settings = settings_of(server, tmp_path)
    call, job = {"model": "fake", "input": "a text"}, {"model": "fake", "type": "embeddings", "input": ["a text"] * 65}
    with running_worker(settings), opened_app(settings) as app:
        client = app.test_client()
        walks = {}
        for name, path, body in (("small call", "/v1/embeddings", call), ("job", "/v1/jobs", job)):
            for trace.on in (False, True):  # the first one loads what is loaded once
                trace.modules = []
                answer = client.post(path, json=body)
                assert answer.status_code in {200, 202}, answer.json
                if answer.status_code == 202:
                    wait_for_end(client, (answer.json or {})["id"])
            trace.on = False
            walks[name] = trace.modules
    for name, modules in walks.items():
        print(f"\n{name}: {len(modules)} modules", *modules, sep="\n  ")
    assert {name: len(modules) for name, modules in walks.items() if len(modules) > MOST[name]} == {}
