"""The rows of a portion with their results: the table that goes into a sink.

Owns its columns: `id`, `text` and `query` unless left out, what is kept, then `embedding` or `relevance_score`,
`tokens`, `truncated` and `error`.
"""

from typing import Any

from twolane.answers import Job
from twolane.client import Twolane
from twolane.errors import UnexpectedAnswer
from twolane.transfer.arrow import load
from twolane.transfer.portions import Portion

__all__ = ["fetch_table"]


def fetch_table(client: Twolane, portion: Portion, job: Job, dimension: int, *, keep_text: bool) -> Any:
    """Return the portion with the results of its job that has ended.

    Args:
        client: of the job's server.
        portion: what was sent.
        job: its job.
        dimension: length of the vectors; 0: scores.
        keep_text: whether text and query are in the table.

    Raises:
        UnexpectedAnswer: the server does not have a result for each row.
    """
    arrow = load("pyarrow")
    data = client.jobs.download(job.id, "arrows")
    results = arrow.ipc.open_stream(arrow.py_buffer(data)).read_all().combine_chunks()
    if results.num_rows != portion.part.items:
        raise UnexpectedAnswer(f"job {job.id} has {results.num_rows} results for {portion.part.items} items")
    columns = {name: portion.rows.column(name) for name in portion.rows.column_names if keep_text or name not in _TEXTS}
    value = results.column("embedding" if dimension else "relevance_score")
    if dimension:
        value = value.cast(arrow.list_(value.type.value_type, dimension))
    columns["embedding" if dimension else "relevance_score"] = value
    columns |= {name: results.column(name) for name in ("tokens", "truncated", "error")}
    return arrow.table(columns)


_TEXTS = frozenset({"text", "query"})
