"""`twolane rerank`: pairs of a query and a text to scores."""

from typing import Annotated

import typer

from twolane.cli.options import (
    CutoffLayers,
    DryRun,
    Format,
    IdColumn,
    Instruction,
    Limit,
    Model,
    PartRows,
    Priority,
    Resume,
    Source,
    Sql,
    Where,
)
from twolane.cli.session import ending, session_of
from twolane.cli.transfers import Rows, Wish, carry_out
from twolane.requests import JobOptions
from twolane.transfer.rows import Columns

__all__ = ["rerank"]


def rerank(
    context: typer.Context,
    source: Source,
    model: Model,
    to: Annotated[str | None, typer.Option(help="Where the scores go: a file.")] = None,
    query_column: Annotated[str, typer.Option(help="The column with the query.")] = "query",
    text_column: Annotated[str, typer.Option(help="The column with the text.")] = "text",
    id_column: IdColumn = None,
    keep: Annotated[list[str] | None, typer.Option(help="A column to write beside the score; repeatable.")] = None,
    text: Annotated[bool, typer.Option(help="Write query and text beside the score.")] = True,
    form: Format = None,
    sql: Sql = None,
    where: Where = None,
    limit: Limit = None,
    instruction: Instruction = None,
    cutoff_layers: CutoffLayers = None,
    priority: Priority = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    part_rows: PartRows = 8192,
) -> None:
    """Score pairs of a query and a text, one a row. Whatever ends a run, the same command goes on where it stopped."""
    session = session_of(context)
    with ending(session):
        columns = Columns(text=text_column, query=query_column, id=id_column, keep=tuple(keep or ()), keep_text=text)
    options = JobOptions(
        model=model, type="rerank", instruction=instruction, cutoff_layers=cutoff_layers, priority=priority
    )
    carry_out(
        session, Wish(Rows(source, form, sql, where, limit), to, options, columns, not resume, dry_run, part_rows)
    )
