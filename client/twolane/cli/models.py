"""`twolane models`: what the server offers."""

import typer
from rich.table import Table

from twolane.cli.session import ending, session_of

__all__ = ["models"]


def models(context: typer.Context) -> None:
    """List the models of the server."""
    session = session_of(context)
    with ending(session), session.client() as client:
        found = client.models()
    if session.as_json:
        for model in found:
            session.print_json(model)
        return
    table = Table("model", "ready", "dimension", "tokens", "capabilities", "aliases")
    for model in found:
        ready = "[green]yes[/green]" if model.ready else "[yellow]no[/yellow]"
        size = "" if model.dimension is None else str(model.dimension)
        names = (", ".join(model.capabilities), ", ".join(model.aliases))
        table.add_row(model.id, ready, size, str(model.max_tokens), *names)
    session.output.print(table)
