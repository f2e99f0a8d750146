"""`twolane`: the program and its own options.

Owns the list of commands. What a command needs from an extra is imported when it runs, so that `--help` is quick.
"""

from typing import Annotated

import typer
from rich.console import Console

from twolane.cli import embed, jobs, models, rerank, search
from twolane.cli.session import Session
from twolane.exchange import read_version

__all__ = ["main", "program"]

program = typer.Typer(
    name="twolane",
    help="Embeddings and reranking on a Twolane server: from a corpus to vectors in one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 2 usage, 3 the corpus, 4 the output, 5 the server, 6 done but rows failed, 130 Ctrl-C",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twolane {read_version()}")
        raise typer.Exit


@program.callback()
def _begin(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(envvar="TWOLANE_URL", help="The server.", show_default=False)] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="TWOLANE_API_KEY", help="Your key.", show_default=False, show_envvar=True)
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for a server that is away.", min=0)] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, a line at a time.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = Session(url, api_key, wait, as_json, Console(), Console(stderr=True))


program.command("embed")(embed.embed)
program.command("rerank")(rerank.rerank)
program.command("search")(search.search)
program.command("models")(models.models)
program.command("jobs")(jobs.list_jobs)
program.command("top")(jobs.watch_jobs)
program.command("job")(jobs.show_job)
program.command("results")(jobs.print_results)
for _verb in ("cancel", "pause", "resume", "retry"):
    program.command(_verb)(jobs.changer(_verb))


def main() -> None:
    """Run the program with the arguments of the process."""
    program()
