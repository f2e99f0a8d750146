"""`AsyncTwolane`: the client for programs with an event loop.

Owns the same methods as `twolane.client`, with the same arguments and errors; only waiting differs.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from twolane import requests
from twolane.answers import Embeddings, Estimate, Job, Model, Ranking, ResultItem
from twolane.corpus import Block, Corpus, EmbeddedCorpus, Part, gather_embeddings
from twolane.errors import ApiError, JobEnded, ServerUnreachable, TwolaneError, read_error
from twolane.exchange import EventReader, ResultReader, Target, read_answer
from twolane.flow import LOST
from twolane.requests import Call, EmbedBody, Item, JobOptions, RerankBody, Webhook
from twolane.retries import Retries, describe_failure

__all__ = ["AsyncJobs", "AsyncTwolane"]

T = TypeVar("T")
_CALL_ITEMS = 2048
_HOLD_S = 10
_PAUSE_S = 0.25


class AsyncTwolane:
    """A server, see `twolane.client.Twolane`."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 120.0,
        retry_for_s: float = 60.0,
    ) -> None:
        self._target = Target(base_url, api_key, timeout_s)
        self._http = httpx.AsyncClient(**self._target.options())
        self.retry_for_s = retry_for_s
        self.jobs = AsyncJobs(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def embed(self, input: str | Sequence[str], *, model: str, **options: Any) -> Embeddings:  # noqa: A002 - the API's name
        """Return the vectors of texts, in their order, see `Twolane.embed`."""
        texts = [input] if isinstance(input, str) else list(input)
        if len(texts) > _CALL_ITEMS:
            blocks = [block async for block in self.embed_corpus(texts, model=model, **options)]
            return gather_embeddings(blocks, model)
        body = EmbedBody(model=model, input=texts, encoding_format="base64", **options)
        return await self.call(requests.embed(body))

    async def embed_corpus(
        self,
        texts: Iterable[str],
        *,
        model: str,
        on_progress: Callable[[EmbeddedCorpus], None] | None = None,
        **options: Any,
    ) -> AsyncIterator[Block]:
        """Yield the results of any number of texts in input order, see `Twolane.embed_corpus`."""
        corpus, waiting = Corpus(JobOptions(model=model, **options)), deque[tuple[Part, Job]]()
        coming, done = corpus.cut(texts), EmbeddedCorpus()
        while True:
            for part in itertools.islice(coming, corpus.window - len(waiting)):
                waiting.append((part, await self._submit(corpus, part)))
            if not waiting:
                return
            part, queued = waiting.popleft()
            job = await self._wait(queued, done, on_progress)
            done = done.plus(job)
            yield Block(part.start, job, [item async for item in self.jobs.results(job.id)])

    async def rerank(self, query: str, documents: Sequence[Item], *, model: str, **options: Any) -> Ranking:
        """Return the documents' scores, best first, see `Twolane.rerank`."""
        return await self.call(requests.rerank(RerankBody(model=model, query=query, documents=documents, **options)))

    async def models(self) -> list[Model]:
        """Return what the server offers."""
        return (await self.call(requests.list_models())).data

    async def model(self, name: str) -> Model:
        """Return one model, by name or alias."""
        return await self.call(requests.get_model(name))

    async def call(self, call: Call[T]) -> T:
        """Send a call, again while that may help, and return its answer."""
        return read_answer(call, await self.send(call))

    async def send(self, call: Call[Any]) -> httpx.Response:
        """Send a call, again while that may help, and return the response, whose status is 2xx or 304."""
        retries = Retries(self.retry_for_s)
        while True:
            try:
                return await self._send_once(call)
            except TwolaneError as error:
                await asyncio.sleep(retries.pause_after(error))

    async def stream_lines(self, call: Call[bytes]) -> AsyncGenerator[str]:
        """Yield the lines of an answer as they come; it is asked for once."""
        try:
            async with self._http.stream(**self._target.arguments(call)) as response:
                if not response.is_success:
                    raise read_error(response.status_code, response.headers, await response.aread())
                async for line in response.aiter_lines():
                    yield line
        except httpx.HTTPError as error:
            raise describe_failure(self._target.url, error) from error

    async def _send_once(self, call: Call[Any]) -> httpx.Response:
        try:
            response = await self._http.request(**self._target.arguments(call))
        except httpx.HTTPError as error:
            raise describe_failure(self._target.url, error) from error
        if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
            return response
        raise read_error(response.status_code, response.headers, response.content)

    async def _submit(self, corpus: Corpus, part: Part) -> Job:
        for number in itertools.count():
            job = await self.jobs.submit(part.lines, corpus.options, key=part.key_of_try(number))
            if job.status not in LOST:
                return job
        raise AssertionError  # pragma: no cover - the count has no end

    async def _wait(self, job: Job, done: EmbeddedCorpus, on_progress: Callable[[EmbeddedCorpus], None] | None) -> Job:
        report = None if on_progress is None else lambda now: on_progress(done.plus(now))
        ended = await self.jobs.wait(job.id, on_progress=report)
        if ended.status in LOST:
            raise JobEnded(ended.id, ended.status)
        return ended


class AsyncJobs:
    """Work that the server keeps under an ID, see `twolane.client.Jobs`."""

    def __init__(self, client: AsyncTwolane) -> None:
        self._client = client

    async def create(
        self,
        items: Iterable[Item],
        *,
        model: str,
        key: str | None = None,
        webhook: Webhook | None = None,
        **options: Any,
    ) -> Job:
        """Queue a job."""
        lines = requests.encode_items(items)
        return await self.submit(lines, JobOptions(model=model, **options), key=key, webhook=webhook)

    async def submit(
        self, lines: bytes, options: JobOptions, *, key: str | None = None, webhook: Webhook | None = None
    ) -> Job:
        """Queue a job of encoded lines, see `create`."""
        return await self._client.call(requests.create_job(lines, options, key=key, webhook=webhook))

    async def estimate(self, items: Iterable[Item], *, model: str, **options: Any) -> Estimate:
        """Return what a job would cost; nothing is stored."""
        return await self.measure(requests.encode_items(items), JobOptions(model=model, **options))

    async def measure(self, lines: bytes, options: JobOptions) -> Estimate:
        """Return what a job of encoded lines would cost, see `estimate`."""
        return await self._client.call(requests.estimate_job(lines, options))

    async def get(self, job_id: str) -> Job:
        """Return a job."""
        return await self._client.call(requests.get_job(job_id))

    async def list(self, *, status: str | None = None, limit: int | None = None) -> AsyncIterator[Job]:
        """Yield jobs, newest first; `status`: names with commas between."""
        after, left = None, limit
        while left is None or left > 0:
            asked = 100 if left is None else min(100, left)
            page = await self._client.call(requests.list_jobs(status=status, limit=asked, after=after))
            for job in page.data:
                yield job
            if not page.has_more:
                return
            after, left = page.last_id, None if left is None else left - len(page.data)

    async def wait(
        self, job_id: str, *, timeout_s: float | None = None, on_progress: Callable[[Job], None] | None = None
    ) -> Job:
        """Return the job when it has ended, see `Jobs.wait`."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        tag = ""
        while True:
            left_s = _HOLD_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"job {job_id} has not ended after {timeout_s} s")
            call = requests.get_job(job_id, wait_s=max(1, min(_HOLD_S, int(left_s))), unless=tag if on_progress else "")
            response = await self._client.send(call)
            if response.status_code == httpx.codes.NOT_MODIFIED:
                continue
            job, tag = read_answer(call, response), response.headers.get("etag", "")
            if on_progress is not None:
                on_progress(job)
            if job.ended:
                return job
            await asyncio.sleep(_PAUSE_S if on_progress is not None else 0)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; what was computed stays readable."""
        return await self._change(job_id, "cancel")

    async def delete(self, job_id: str) -> Job:
        """Cancel a job that has not ended; delete one that has, with its results, and return what it was."""
        return await self._client.call(requests.delete_job(job_id))

    async def pause(self, job_id: str) -> Job:
        """Let a job wait."""
        return await self._change(job_id, "pause")

    async def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return await self._change(job_id, "resume")

    async def retry(self, job_id: str) -> Job:
        """Queue the failed items of an ended job again, and only those."""
        return await self._change(job_id, "retry")

    async def results(self, job_id: str, *, after: int = -1) -> AsyncIterator[ResultItem]:
        """Yield the results of an ended job behind an index, in input order."""
        while True:
            page = await self._client.call(requests.page_results(job_id, after=after))
            for item in page.data:
                yield item
            if not page.has_more or page.last_id is None:
                return
            after = page.last_id

    async def follow(self, job_id: str, *, after: int = -1) -> AsyncIterator[ResultItem]:
        """Yield the results behind an index while the job runs, in input order; a lost connection is taken up again."""
        reader, retries = ResultReader(after), Retries(self._client.retry_for_s)
        while not reader.complete:
            try:
                lines = self._client.stream_lines(requests.follow_results(job_id, reader.after))
                async with contextlib.aclosing(lines):
                    async for line in lines:
                        if (item := reader.feed(line)) is not None:
                            retries = Retries(self._client.retry_for_s)
                            yield item
            except (ServerUnreachable, ApiError) as error:
                await asyncio.sleep(retries.pause_after(error))

    async def download(self, job_id: str, form: Literal["ndjson", "npy", "arrow", "arrows", "parquet"]) -> bytes:
        """Return all results of an ended job as the bytes of one file."""
        return await self._client.call(requests.download_results(job_id, form))

    async def events(self, job_id: str) -> AsyncIterator[Job]:
        """Yield the job at once and each time it has changed, until it has ended."""
        reader, retries = EventReader(), Retries(self._client.retry_for_s)
        while True:
            try:
                lines = self._client.stream_lines(requests.follow_events(job_id, reader.last_id))
                async with contextlib.aclosing(lines):
                    async for line in lines:
                        job = reader.feed(line)
                        if job is not None:
                            retries = Retries(self._client.retry_for_s)
                            yield job
                            if job.ended:
                                return
            except (ServerUnreachable, ApiError) as error:
                await asyncio.sleep(retries.pause_after(error))

    async def _change(self, job_id: str, verb: Literal["cancel", "pause", "resume", "retry"]) -> Job:
        return await self._client.call(requests.change_job(job_id, verb))
