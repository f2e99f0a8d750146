"""The rows of a corpus that fulfil a condition in SQL, by DuckDB.

Owns the condition. Batches are filtered one by one, so that the order of rows stays and memory holds one batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from twolane.errors import InputError, first_line
from twolane.transfer.arrow import load

__all__ = ["filter_rows"]


def filter_rows(batches: Iterable[Any], condition: str, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows that fulfil a condition.

    Args:
        batches: with all columns.
        condition: what stands behind WHERE, as `lang = 'en' AND length(body) > 20`.
        columns: those that are yielded.

    Raises:
        InputError: the condition cannot be used on these columns.
    """
    duckdb, arrow = load("duckdb", "where"), load("pyarrow")
    with duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False}) as database:
        for batch in batches:
            missing = [name for name in columns if name not in batch.schema.names]
            if missing:
                raise InputError(f"there is no column {missing[0]}; there are {', '.join(sorted(batch.schema.names))}")
            database.register("rows", arrow.Table.from_batches([batch]))
            try:
                # Which rows, not the rows: values keep the types that they came with.
                kept = database.execute(f"SELECT CAST(({condition}) AS BOOLEAN) FROM rows").fetchnumpy()  # noqa: S608 - the user's own
            except duckdb.Error as error:
                raise InputError(f"--where: {first_line(error)}") from None
            yield batch.select(list(columns)).filter(_mask(kept, batch.num_rows))


def _mask(found: dict[str, Any], rows: int) -> Any:
    """Return which rows fulfil the condition; null is no."""
    numpy, arrow = load("numpy"), load("pyarrow")
    (values,) = found.values()
    if len(values) != rows:
        raise InputError("--where must be a condition for each row")
    return arrow.array(numpy.ma.filled(values, fill_value=False).astype(bool))
