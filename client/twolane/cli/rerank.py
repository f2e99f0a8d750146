"""`twolane rerank`: pairs of a query and a text to scores."""

from typing import Annotated, Literal

import typer

from twolane.cli.session import ending, session_of
from twolane.cli.transfers import Wish, carry_out
from twolane.requests import JobOptions
from twolane.transfer.rows import Columns

__all__ = ["rerank"]


def rerank(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A file, a glob, or - for standard input; one pair a row.")],
    model: Annotated[str, typer.Option("--model", "-m", envvar="TWOLANE_MODEL", help="Name or alias.")],
    to: Annotated[str | None, typer.Option(help="Where the scores go: a file.")] = None,
    query_column: Annotated[str, typer.Option(help="The column with the query.")] = "query",
    text_column: Annotated[str, typer.Option(help="The column with the text.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="The column with the ID. Default: the row's number.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A column to write beside the score; repeatable.")] = None,
    text: Annotated[bool, typer.Option(help="Write query and text beside the score.")] = True,
    form: Annotated[str | None, typer.Option("--format", help="Of the source, where its name does not tell.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many rows.", min=1)] = None,
    instruction: Annotated[str | None, typer.Option(help="An instruction instead of the model's own.")] = None,
    priority: Annotated[Literal["low", "normal", "high"] | None, typer.Option(help="Of the jobs.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on where an earlier run stopped, or begin anew.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say rows, tokens, bytes and time.")] = False,
    part_rows: Annotated[int, typer.Option(help="Most rows of one job.", min=1)] = 8192,
) -> None:
    """Score pairs of a query and a text. Whatever ends a run, the same command goes on where it stopped."""
    session = session_of(context)
    with ending(session):
        columns = Columns(text=text_column, query=query_column, id=id_column, keep=tuple(keep or ()), keep_text=text)
    options = JobOptions(model=model, type="rerank", instruction=instruction, priority=priority)
    carry_out(session, Wish(source, form, to, options, columns, limit, not resume, dry_run, part_rows))
