"""`twolane search`: a question to a file of vectors, without a database."""

from typing import Annotated

import typer
from rich.table import Table

from twolane.cli.session import Session, ending, session_of
from twolane.transfer.lookup import Found, look_up, rerank_found

__all__ = ["search"]

# Reranking looks at more than it shows: the best by vectors need not be the best by both texts together.
_LOOKED_AT = 5


def search(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="What you look for.")],
    within: Annotated[str, typer.Option("--in", help="A Parquet or Arrow file of `twolane embed`.")],
    top: Annotated[int, typer.Option(help="Most answers.", min=1)] = 10,
    rerank: Annotated[bool, typer.Option("--rerank", help="Order the best once more by both texts together.")] = False,
    reranker: Annotated[str | None, typer.Option(help="Model for --rerank. Default: that of the file.")] = None,
) -> None:
    """Find the rows of a file that answer a question."""
    session = session_of(context)
    with ending(session), session.client() as client:
        found, model = look_up(client, within, question, top * _LOOKED_AT if rerank else top)
        if rerank:
            found = rerank_found(client, found, question, reranker or model)
    _show(session, found[:top])


def _show(session: Session, found: list[Found]) -> None:
    if session.as_json:
        for row in found:
            session.print_json(row)
        return
    table = Table("score", "id", "text", show_lines=False)
    for row in found:
        text = (row.text or "").replace("[", r"\[")
        table.add_row(f"{row.score:.4f}", str(row.id), text if len(text) < 300 else text[:297] + "...")
    session.output.print(table)
