"""The asynchronous client against a real server: the same answers, and many calls at a time."""

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from twolane import ApiError, AsyncTwolane, EmbeddedCorpus, Twolane
from twolane.async_client import AsyncJobs
from twolane.client import Jobs

T = TypeVar("T")
TEXTS = [f"passage number {number}" for number in range(50)]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.mark.parametrize(("plain", "twin"), [(Twolane, AsyncTwolane), (Jobs, AsyncJobs)])
def test_both_clients_have_the_same_methods_with_the_same_arguments(plain: type, twin: type) -> None:
    def described(owner: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(owner, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert described(plain) == described(twin)


def test_many_calls_at_a_time_give_what_one_call_gives(address: str, client: Twolane) -> None:
    async def embed_all() -> list[list[float]]:
        async with AsyncTwolane(address) as twin:
            answers = await asyncio.gather(*(twin.embed(text, model="fake") for text in TEXTS))
            return [answer.vectors[0] for answer in answers]

    assert run(embed_all()) == client.embed(TEXTS, model="fake").vectors


def test_a_job_runs_to_its_results(address: str) -> None:
    async def work() -> tuple[list[str], list[str | None], int]:
        async with AsyncTwolane(address) as twin:
            job = await twin.jobs.create([{"id": text, "text": text} for text in TEXTS], model="fake")
            states = [event.status async for event in twin.jobs.events(job.id)]
            await twin.jobs.wait(job.id)
            ids = [item.id async for item in twin.jobs.results(job.id)]
            assert ids == [item.id async for item in twin.jobs.follow(job.id)]
            listed = [job async for job in twin.jobs.list(limit=1)]
            return states, ids, len(listed)

    states, ids, listed = run(work())
    assert (states[-1], ids, listed) == ("succeeded", TEXTS, 1)


def test_a_corpus_is_computed_in_blocks(address: str, client: Twolane) -> None:
    seen: list[EmbeddedCorpus] = []
    texts = [f"asynchronous corpus {number}" for number in range(9000)]

    async def work() -> list[int]:
        async with AsyncTwolane(address) as twin:
            blocks = twin.embed_corpus(texts, model="fake", on_progress=seen.append)
            return [block.start + item.index async for block in blocks for item in block.items]

    assert run(work()) == list(range(9000))
    assert seen[-1].completed == 9000


def test_a_refusal_is_the_same_error(address: str) -> None:
    async def work() -> None:
        async with AsyncTwolane(address) as twin:
            await twin.rerank("query", ["text"], model="nobody-knows")

    with pytest.raises(ApiError) as refused:
        run(work())
    assert refused.value.code == "model_not_found"
