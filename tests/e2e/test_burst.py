"""A thousand connections at the same time: every request is answered as promised, by the real processes."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.load.burst import Burst, Outcome, burst
from tests.support.product import MODEL
from tests.support.stack_fixture import RunningStack, running_stack

ANSWER = b"HTTP/1.1 %b\r\nContent-Length: %d\r\nx-request-id: r\r\n%b\r\n%b"
ERROR = b'{"error": {"message": "m", "type": "t", "param": null, "code": "c"}}'
EMBEDDED = b'{"data": [{}]}'


def test_a_thousand_connections_are_all_answered(stack: RunningStack) -> None:
    outcome = asyncio.run(burst(Burst(stack.url, connections=1000, requests=3000, model=MODEL)))
    assert (outcome.judge(), outcome.connected, sum(outcome.counts.values())) == ([], 1000, 3000)


def test_a_full_lane_turns_some_away_with_a_time_to_come_back_and_serves_all_others(tmp_path: Path) -> None:
    with running_stack(tmp_path, "fake", interactive_max_tokens="200", lane_max_tokens="200") as narrow:
        outcome = asyncio.run(burst(Burst(narrow.url, connections=1000, requests=3000, model="fake")))
    assert (outcome.judge(), outcome.connected, sum(outcome.counts.values())) == ([], 1000, 3000)
    assert set(outcome.counts) == {200, 429}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (ANSWER % (b"200 OK", len(EMBEDDED), b"", EMBEDDED), []),
        (ANSWER % (b"200 OK", 2, b"", b"{}"), ["3 x 200 with a body that is not as promised"]),
        (ANSWER % (b"500 No", len(ERROR), b"", ERROR), ["3 x 500", "0.00% of the admitted requests succeeded"]),
        (ANSWER % (b"429 No", len(ERROR), b"", ERROR), ["3 x 429 with Retry-After ''", "no request was admitted"]),
        (
            ANSWER % (b"503 No", len(ERROR), b"Retry-After: 1.5\r\n", ERROR),
            ["3 x 503 with Retry-After '1.5'", "no req"],
        ),
        (ANSWER % (b"429 No", len(ERROR), b"Retry-After: 7\r\n", ERROR), ["no request was admitted"]),
        (b"HTTP/1.1 200 OK\r\n", ["3 x lost", "0.00% of the admitted requests succeeded"]),
    ],
)
def test_the_burst_notices_what_a_server_does_wrong(answer: bytes, found: list[str]) -> None:
    async def run() -> Outcome:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.read(4096):
                writer.write(answer)
                if not answer.endswith(b"}"):
                    break
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await burst(Burst(f"http://127.0.0.1:{port}", connections=1, requests=3, timeout_s=10))

    problems = asyncio.run(run()).judge()
    assert len(problems) == len(found), problems
    assert all(problem.startswith(start) for problem, start in zip(problems, found, strict=True)), problems
