"""`Twolane`: the client for programs that wait.

Owns the connection, the tries of a call and the methods of the service; `Jobs` are those of large work. One client
may be used by several threads, and keeps its connections.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx

from twolane import requests
from twolane.answers import Embeddings, Estimate, Job, Model, Ranking, ResultItem
from twolane.corpus import Block, Corpus, EmbeddedCorpus, gather_embeddings
from twolane.errors import ApiError, ServerUnreachable, TwolaneError, read_error
from twolane.exchange import EventReader, ResultReader, Target, read_answer
from twolane.flow import run_corpus
from twolane.requests import Call, EmbedBody, Item, JobOptions, RerankBody, Webhook
from twolane.retries import Retries, describe_failure

__all__ = ["Jobs", "Twolane"]

T = TypeVar("T")
OnProgress = Callable[[Job], None]
# As many as the server takes in one call by default.
_CALL_ITEMS = 2048
_HOLD_S = 10
# A fast job changes eighty times a second.
_PAUSE_S = 0.25


class Twolane:
    """A server.

    Args:
        base_url: as `http://127.0.0.1:8000`; None: the variable TWOLANE_URL, or this machine.
        api_key: None: the variable TWOLANE_API_KEY, if there is one.
        timeout_s: longest silence of the server within a call.
        retry_for_s: how long a call is tried again while the server is away or busy; the server's Retry-After is kept.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 120.0,
        retry_for_s: float = 60.0,
    ) -> None:
        self._target = Target(base_url, api_key, timeout_s)
        self._http = httpx.Client(**self._target.options())
        self.retry_for_s = retry_for_s
        self.jobs = Jobs(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed(self, input: str | Sequence[str], *, model: str, **options: Any) -> Embeddings:  # noqa: A002 - the API's name
        """Return the vectors of texts, in their order.

        Up to 2048 texts are one call. More are computed as jobs, whose keys follow from the texts: when the program
        is run again, what was computed is not computed once more.

        Args:
            input: a text or several.
            model: name or alias.
            options: `dimensions`, `input_type`, `instruction`, `truncate`, `cache`, `returns`, `long` with
                `chunk_tokens` and `overlap_tokens`.

        Raises:
            ApiError: the server refused.
            ServerUnreachable: it did not answer for `retry_for_s`.
            ItemsFailed: some of more than 2048 texts have no vector.
        """
        texts = [input] if isinstance(input, str) else list(input)
        if len(texts) > _CALL_ITEMS:
            return gather_embeddings(list(self.embed_corpus(texts, model=model, **options)), model)
        return self.call(requests.embed(EmbedBody(model=model, input=texts, encoding_format="base64", **options)))

    def embed_corpus(
        self,
        texts: Iterable[str],
        *,
        model: str,
        on_progress: Callable[[EmbeddedCorpus], None] | None = None,
        **options: Any,
    ) -> Iterator[Block]:
        """Yield the results of any number of texts in input order, a block at a time, with bounded memory.

        The texts are cut into parts, and each part is a job under a key that follows from its texts and options. A
        second run of the same program therefore reuses what the first one computed, whatever ended it.

        Args:
            texts: read as they are needed.
            model: name or alias.
            on_progress: called with the state of the whole when it has changed.
            options: fields of `JobOptions`.

        Raises:
            JobEnded: one of the jobs was cancelled meanwhile.
        """
        corpus = Corpus(JobOptions(model=model, **options))
        for part, job in run_corpus(self, corpus, texts, on_progress):
            yield Block(part.start, job, list(self.jobs.results(job.id)))

    def rerank(self, query: str, documents: Sequence[Item], *, model: str, **options: Any) -> Ranking:
        """Return the documents' scores, best first.

        Args:
            query: what they are compared with.
            documents: texts, or objects with a `text`.
            model: name or alias.
            options: `top_n`, `return_documents`, `instruction`, `cutoff_layers`, `cache`, `max_tokens_per_doc`,
                `max_chunks_per_doc`, `overlap_tokens`.
        """
        return self.call(requests.rerank(RerankBody(model=model, query=query, documents=documents, **options)))

    def models(self) -> list[Model]:
        """Return what the server offers."""
        return self.call(requests.list_models()).data

    def model(self, name: str) -> Model:
        """Return one model, by name or alias."""
        return self.call(requests.get_model(name))

    def call(self, call: Call[T]) -> T:
        """Send a call, again while that may help, and return its answer."""
        return read_answer(call, self.send(call))

    def send(self, call: Call[Any]) -> httpx.Response:
        """Send a call, again while that may help, and return the response, whose status is 2xx or 304."""
        retries = Retries(self.retry_for_s)
        while True:
            try:
                return self._send_once(call)
            except TwolaneError as error:
                time.sleep(retries.pause_after(error))

    def stream_lines(self, call: Call[bytes]) -> Iterator[str]:
        """Yield the lines of an answer as they come; it is asked for once."""
        try:
            with self._http.stream(**self._target.arguments(call)) as response:
                if not response.is_success:
                    raise read_error(response.status_code, response.headers, response.read())
                yield from response.iter_lines()
        except httpx.HTTPError as error:
            raise describe_failure(self._target.url, error) from error

    def _send_once(self, call: Call[Any]) -> httpx.Response:
        try:
            response = self._http.request(**self._target.arguments(call))
        except httpx.HTTPError as error:
            raise describe_failure(self._target.url, error) from error
        if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
            return response
        raise read_error(response.status_code, response.headers, response.content)


class Jobs:
    """Work that the server keeps under an ID."""

    def __init__(self, client: Twolane) -> None:
        self._client = client

    def create(
        self,
        items: Iterable[Item],
        *,
        model: str,
        key: str | None = None,
        webhook: Webhook | None = None,
        **options: Any,
    ) -> Job:
        """Queue a job.

        Args:
            items: texts, or objects with `text`, an `id` that comes back, and for rerank a `query`.
            model: name or alias.
            key: idempotency key: the same key with the same items is the same job. None: a new job.
            webhook: where the job's end is announced.
            options: fields of `JobOptions`.
        """
        lines = requests.encode_items(items)
        return self.submit(lines, JobOptions(model=model, **options), key=key, webhook=webhook)

    def submit(
        self, lines: bytes, options: JobOptions, *, key: str | None = None, webhook: Webhook | None = None
    ) -> Job:
        """Queue a job of encoded lines, see `create`."""
        return self._client.call(requests.create_job(lines, options, key=key, webhook=webhook))

    def estimate(self, items: Iterable[Item], *, model: str, **options: Any) -> Estimate:
        """Return what a job would cost; nothing is stored."""
        return self.measure(requests.encode_items(items), JobOptions(model=model, **options))

    def measure(self, lines: bytes, options: JobOptions) -> Estimate:
        """Return what a job of encoded lines would cost, see `estimate`."""
        return self._client.call(requests.estimate_job(lines, options))

    def get(self, job_id: str) -> Job:
        """Return a job."""
        return self._client.call(requests.get_job(job_id))

    def list(self, *, status: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Yield jobs, newest first; `status`: names with commas between."""
        after, left = None, limit
        while left is None or left > 0:
            asked = 100 if left is None else min(100, left)
            page = self._client.call(requests.list_jobs(status=status, limit=asked, after=after))
            yield from page.data
            if not page.has_more:
                return
            after, left = page.last_id, None if left is None else left - len(page.data)

    def wait(self, job_id: str, *, timeout_s: float | None = None, on_progress: OnProgress | None = None) -> Job:
        """Return the job when it has ended.

        Args:
            job_id: the job.
            timeout_s: None: wait for as long as it takes.
            on_progress: called with each new state that is seen, at most four times a second.

        Raises:
            TimeoutError: it has not ended in time.
        """
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        tag = ""
        while True:
            left_s = _HOLD_S if until_s is None else until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"job {job_id} has not ended after {timeout_s} s")
            call = requests.get_job(job_id, wait_s=max(1, min(_HOLD_S, int(left_s))), unless=tag if on_progress else "")
            response = self._client.send(call)
            if response.status_code == httpx.codes.NOT_MODIFIED:
                continue
            job, tag = read_answer(call, response), response.headers.get("etag", "")
            if on_progress is not None:
                on_progress(job)
            if job.ended:
                return job
            time.sleep(_PAUSE_S if on_progress is not None else 0)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; what was computed stays readable."""
        return self._change(job_id, "cancel")

    def delete(self, job_id: str) -> Job:
        """Cancel a job that has not ended; delete one that has, with its results, and return what it was."""
        return self._client.call(requests.delete_job(job_id))

    def pause(self, job_id: str) -> Job:
        """Let a job wait."""
        return self._change(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on."""
        return self._change(job_id, "resume")

    def retry(self, job_id: str) -> Job:
        """Queue the failed items of an ended job again, and only those."""
        return self._change(job_id, "retry")

    def results(self, job_id: str, *, after: int = -1) -> Iterator[ResultItem]:
        """Yield the results of an ended job behind an index, in input order."""
        while True:
            page = self._client.call(requests.page_results(job_id, after=after))
            yield from page.data
            if not page.has_more or page.last_id is None:
                return
            after = page.last_id

    def follow(self, job_id: str, *, after: int = -1) -> Iterator[ResultItem]:
        """Yield the results behind an index while the job runs, in input order; a lost connection is taken up again."""
        reader, retries = ResultReader(after), Retries(self._client.retry_for_s)
        while not reader.complete:
            try:
                for line in self._client.stream_lines(requests.follow_results(job_id, reader.after)):
                    if (item := reader.feed(line)) is not None:
                        retries = Retries(self._client.retry_for_s)
                        yield item
            except (ServerUnreachable, ApiError) as error:
                time.sleep(retries.pause_after(error))

    def download(self, job_id: str, form: Literal["ndjson", "npy", "arrow", "arrows", "parquet"]) -> bytes:
        """Return all results of an ended job as the bytes of one file."""
        return self._client.call(requests.download_results(job_id, form))

    def events(self, job_id: str) -> Iterator[Job]:
        """Yield the job at once and each time it has changed, until it has ended."""
        reader, retries = EventReader(), Retries(self._client.retry_for_s)
        while True:
            try:
                for line in self._client.stream_lines(requests.follow_events(job_id, reader.last_id)):
                    job = reader.feed(line)
                    if job is not None:
                        retries = Retries(self._client.retry_for_s)
                        yield job
                        if job.ended:
                            return
            except (ServerUnreachable, ApiError) as error:
                time.sleep(retries.pause_after(error))

    def _change(self, job_id: str, verb: Literal["cancel", "pause", "resume", "retry"]) -> Job:
        return self._client.call(requests.change_job(job_id, verb))
