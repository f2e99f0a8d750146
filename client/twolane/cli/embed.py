"""`twolane embed`: a corpus to vectors."""

from typing import Annotated, Literal

import typer

from twolane.cli.options import (
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

__all__ = ["embed"]


def embed(
    context: typer.Context,
    source: Source,
    model: Model,
    to: Annotated[str | None, typer.Option(help="Where the vectors go: a file, or the address of a database.")] = None,
    text_column: Annotated[str, typer.Option(help="The column to embed.")] = "text",
    template: Annotated[str | None, typer.Option(help="Instead: a text of columns, as '{title}: {body}'.")] = None,
    id_column: IdColumn = None,
    keep: Annotated[list[str] | None, typer.Option(help="A column to write beside the vector; repeatable.")] = None,
    text: Annotated[bool, typer.Option(help="Write the text beside the vector.")] = True,
    form: Format = None,
    sql: Sql = None,
    where: Where = None,
    limit: Limit = None,
    skip_null: Annotated[bool, typer.Option("--skip-null", help="Leave out rows without a text.")] = False,
    dimensions: Annotated[int | None, typer.Option(help="Cut vectors to this length.", min=1)] = None,
    input_type: Annotated[Literal["query", "document"] | None, typer.Option(help="What the texts are.")] = None,
    instruction: Instruction = None,
    truncate: Annotated[
        Literal["end", "start", "none"] | None, typer.Option(help="Where long texts are cut; none fails them.")
    ] = None,
    dtype: Annotated[Literal["float32", "float16"] | None, typer.Option(help="Of the vectors.")] = None,
    priority: Priority = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    part_rows: PartRows = 8192,
) -> None:
    """Embed a corpus. Whatever ends a run, the same command goes on where it stopped."""
    session = session_of(context)
    with ending(session):
        columns = Columns(
            text=text_column,
            template=template,
            id=id_column,
            keep=tuple(keep or ()),
            keep_text=text,
            skip_null=skip_null,
        )
    options = JobOptions(
        model=model,
        dimensions=dimensions,
        input_type=input_type,
        instruction=instruction,
        truncate=truncate,
        dtype=dtype,
        priority=priority,
    )
    carry_out(
        session, Wish(Rows(source, form, sql, where, limit), to, options, columns, not resume, dry_run, part_rows)
    )
