"""`twolane-server`: one command for the programs of the server.

Owns the names of the programs and what to install for each. The program runs in the place of this process, so signals
and exit codes are its own.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from config.version import read_version

__all__ = ["main"]


@dataclass(frozen=True, slots=True)
class _Program:
    """A module that is run.

    Attributes:
        needs: modules outside this distribution without which it cannot run, each with the extra that brings it.
    """

    module: str
    purpose: str
    needs: tuple[tuple[str, str], ...] = ()


_WEB, _WORKER = ("granian", "web"), ("torch", "worker")
_PROGRAMS = {
    "serve": _Program(
        "stack.serve", "the whole product on this machine until Ctrl-C", (_WEB, _WORKER, ("flower", "stack"))
    ),
    "web": _Program("app", "the web server", (_WEB,)),
    "worker": _Program("workers.launch", "one worker for each device of this machine", (_WORKER,)),
    "doctor": _Program("workers.doctor", "examine a model: doctor all-MiniLM-L6-v2", (_WORKER,)),
    "keys": _Program("config.new_key", "make an API key: keys new --tenant NAME --file keys.toml"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a program in the place of this process; return an exit code only where none can be run."""
    asked = _parser().parse_args(arguments)
    program = _PROGRAMS[asked.program]
    missing = [extra for module, extra in program.needs if importlib.util.find_spec(module) is None]
    if not missing:
        _become(program, asked.arguments)
    install = f"pip install 'twolane-server[{','.join(missing)}]'"
    print(f"twolane-server {asked.program} is not installed completely: {install}", file=sys.stderr)
    return 1


def _become(program: _Program, arguments: Sequence[str]) -> NoReturn:
    # A folder named `app` or `tasks` where the command is given must not be taken for ours, by the children neither.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", program.module, *arguments])  # noqa: S606 - our own program


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<8} {program.purpose}" for name, program in _PROGRAMS.items())
    parser = argparse.ArgumentParser(
        "twolane-server",
        description=f"Embeddings and reranking on your own machines.\n\nprograms:\n{names}",
        epilog="Settings are environment variables (TWOLANE_...) or lines of a .env file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"twolane-server {read_version()}")
    parser.add_argument("program", choices=_PROGRAMS, metavar="program", help="one of the above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the program")
    return parser


if __name__ == "__main__":
    sys.exit(main())
