"""Options that the commands which carry a corpus share."""

from typing import Annotated, Literal

import typer

__all__ = [
    "CutoffLayers",
    "DryRun",
    "Format",
    "IdColumn",
    "Instruction",
    "Limit",
    "Model",
    "PartRows",
    "Priority",
    "Resume",
    "Source",
    "Sql",
    "Where",
]

Model = Annotated[str, typer.Option("--model", "-m", envvar="TWOLANE_MODEL", help="Name or alias.")]
IdColumn = Annotated[str | None, typer.Option(help="The column with the ID. Default: the row's number.")]
Format = Annotated[str | None, typer.Option("--format", help="Of the source, where its name does not tell.")]
Source = Annotated[
    list[str],
    typer.Argument(
        help="Files, globs or folders, here or at s3://, gs://, https://; postgresql://host/db#table; or -."
    ),
]
Sql = Annotated[str | None, typer.Option(help="A query with ORDER BY, for a database as the source.")]
Where = Annotated[str | None, typer.Option(help="Only rows that fulfil this condition, in SQL.")]
Limit = Annotated[int | None, typer.Option(help="Only so many rows.", min=1)]
Instruction = Annotated[str | None, typer.Option(help="An instruction instead of the model's own.")]
CutoffLayers = Annotated[int | None, typer.Option(help="The layer after which a layerwise reranker scores.")]
Priority = Annotated[Literal["low", "normal", "high"] | None, typer.Option(help="Of the jobs.")]
Resume = Annotated[
    bool, typer.Option("--resume/--overwrite", help="Go on where an earlier run stopped, or begin anew.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say rows, tokens, bytes and time.")]
PartRows = Annotated[int, typer.Option(help="Most rows of one job.", min=1)]
