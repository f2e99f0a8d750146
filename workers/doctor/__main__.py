"""`python -m workers.doctor MODEL`: a table of checks, a verdict, and an exit code.

Owns the command line and the table. Exit codes: 0 the model is served right here, 1 it is not, 2 that was not examined.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence

from config.catalog import ModelCard, load_catalog
from config.logging import configure_logging
from config.settings import Settings
from workers.doctor.comparing import Check
from workers.doctor.examination import Examination

__all__ = ["main"]

RIGHT, WRONG, NOT_EXAMINED = 0, 1, 2
_SECONDS = 100.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine a model and return the exit code."""
    asked = _parser().parse_args(arguments)
    settings = Settings()
    configure_logging(settings.model_copy(update={"log_level": "warning"}), "doctor")
    # The libraries warn of each other; what matters is in the table.
    warnings.simplefilter("ignore")
    try:
        card = _find_card(asked.model, settings)
    except (OSError, ValueError) as error:
        _say(f"{error}")
        return NOT_EXAMINED
    started_s = time.monotonic()
    _say(f"{card.name} ({card.source})\n")
    checks = []
    for check in Examination(card, settings, asked.seconds).run():
        checks.append(check)
        _say(f"  {check.name:<32} {check.verdict:<8} {check.found}")
    code, verdict = _judge(card, checks)
    _say(f"\n{verdict} ({time.monotonic() - started_s:.0f} s)")
    return code


def _find_card(name: str, settings: Settings) -> ModelCard:
    catalog = load_catalog(settings.catalog_file, [name])
    card = catalog.find(name)
    if card is None:
        raise ValueError(catalog.describe_unknown(name))
    if card.family == "fake":
        raise ValueError(f"{card.name} computes nothing that could be examined")
    return card


def _judge(card: ModelCard, checks: Sequence[Check]) -> tuple[int, str]:
    failed = [check.name for check in checks if check.verdict == "FAILED"]
    if failed:
        return WRONG, f"{card.name} must not be served here: {', '.join(failed)} failed"
    skipped = [check.name for check in checks if check.verdict == "skipped"]
    if skipped:
        return NOT_EXAMINED, f"{card.name} was not examined wholly: {', '.join(skipped)} skipped"
    notes = sum(check.verdict == "note" for check in checks)
    return RIGHT, f"{card.name} is served right here" + (f"; see the notes ({notes})" if notes else "")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the report is the product


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "twolane-server doctor", description="Does a model give here what its reference library gives?"
    )
    parser.add_argument("model", help="as in TWOLANE_MODELS: a name of the catalogue, an ID or a folder")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="about how long (default: %(default)g)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
