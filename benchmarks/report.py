"""How results are shown and kept: tables on the screen, one JSON file a run, a summary in the documentation.

Owns formats and file names. Every figure comes from the sheet.
"""

import json
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine as machines
from benchmarks.goals import Verdict, judge
from benchmarks.sheet import Row, Sheet
from benchmarks.stacks.processes import BUILD

__all__ = ["print_tables", "write_docs", "write_results"]

RESULTS = Path("benchmarks/results")
DOCS = Path("docs/benchmarks.md")
_BEGIN, _END = "<!-- begin: written by `make bench` -->", "<!-- end -->"
OURS = "Twolane"
# An error may quote a whole log; the results file has it all.
_LINE_CHARS = 120


def print_tables(console: Console, sheet: Sheet) -> None:
    """Print one table a suite, then the targets."""
    for suite in sheet.suites():
        table = Table(title=suite, title_justify="left", header_style="bold")
        for column in ("subject", "metric"):
            table.add_column(column, overflow="fold")
        for column in ("median", "lowest", "highest", "Twolane is"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in sheet.rows(suite):
            table.add_row(*_cells(sheet, row))
        console.print(table)
    verdicts = judge(sheet)
    if verdicts:
        table = Table("target", "measured", "asked for", "", title="targets", title_justify="left")
        for verdict in verdicts:
            style = "green" if verdict.met else "red"
            table.add_row(verdict.text, verdict.measured, verdict.asked, f"[{style}]{verdict.words}[/{style}]")
        console.print(table)
    for line in sheet.left_out:
        console.print(f"left out: {line}", style="yellow", markup=False)


def write_results(sheet: Sheet, machine: dict[str, Any], run: dict[str, Any]) -> Path:
    """Write everything of a run into `<date>-<machine>.json` and return the path.

    Full runs are kept in `benchmarks/results`, quick ones below `build`: their figures are good for nothing.
    """
    folder = BUILD / "results" if run["quick"] else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    part = "" if run["complete"] else "-" + "-".join(run["suites"])
    path = folder / f"{run['date']}-{machines.name(machine)}{part}.json"
    document = {
        "machine": machine,
        "run": run,
        "rows": [row.as_json() for row in sheet.rows()],
        "targets": [verdict.as_json() for verdict in judge(sheet)],
        "left_out": sheet.left_out,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def write_docs(machine: dict[str, Any]) -> None:
    """Put the newest recorded figures of each suite on this kind of machine between the two marks in the documentation.

    The text around the marks in `docs/benchmarks.md` is written by people.
    """
    text = DOCS.read_text("utf-8")
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    sheet, documents = _read_newest(machines.name(machine))
    parts = [_BEGIN, *dict.fromkeys(_machine_lines(found["machine"], found["run"]) for found in documents.values())]
    parts += [_runs_line(documents), _target_table(judge(sheet))]
    parts += [_suite_table(sheet, suite) for suite in documents]
    if sheet.left_out:
        parts.append("Left out:\n\n" + "\n".join(f"- {shorten(line, _LINE_CHARS)}" for line in sheet.left_out))
    DOCS.write_text(before + "\n\n".join(part for part in parts if part) + "\n\n" + _END + after, "utf-8")


def _read_newest(name: str) -> tuple[Sheet, dict[str, dict[str, Any]]]:
    """Return all rows, without what newer runs made up for, and for each suite the results file that they are from."""
    found = [json.loads(path.read_text("utf-8")) for path in RESULTS.glob(f"*-{name}*.json")]
    documents: dict[str, dict[str, Any]] = {}
    for document in sorted(found, key=lambda one: str(one["run"].get("at", one["run"]["date"]))):
        documents |= dict.fromkeys({row["suite"] for row in document["rows"]}, document)
    sheet = Sheet()
    for suite, document in documents.items():
        sheet.take(row for row in document["rows"] if row["suite"] == suite)
    sheet.left_out = [
        line
        for document in _distinct(documents)
        for line in document["left_out"]
        if not any(line.startswith(f"suite {suite},") and newer is not document for suite, newer in documents.items())
    ]
    return sheet, dict(sorted(documents.items()))


def _distinct(documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return list({id(document): document for document in documents.values()}.values())


def _runs_line(documents: dict[str, dict[str, Any]]) -> str:
    runs = _distinct(documents)
    if len(runs) == 1:
        return "All suites are from one run."
    parts = [", ".join(suite for suite, one in documents.items() if one is run) for run in runs]
    return f"Suites of one run each: {'; '.join(parts)}. A ratio never mixes two runs."


def _cells(sheet: Sheet, row: Row) -> tuple[str, ...]:
    median, *spread = (_number(value, row.unit) for value in (row.median, min(row.samples), max(row.samples)))
    note = f" ({row.note})" if row.note else ""
    shown = spread if len(row.samples) > 1 else ("", "")
    return (row.subject, row.metric + note, f"{median} {row.unit}", *shown, _ours(sheet, row))


def _ours(sheet: Sheet, row: Row) -> str:
    """Return how many times better we are than this row, by the same metric of the same suite; empty for our own."""
    if not row.better or row.subject.startswith(OURS):
        return ""
    ours = next((r for r in sheet.rows(row.suite) if r.subject.startswith(OURS) and r.metric == row.metric), None)
    pair = (ours, row) if row.better == "higher" else (row, ours)
    ratio = sheet.ratio(*pair)
    return f"{ratio:.2g}x" if ratio is not None and ratio < 10 else f"{ratio:.0f}x" if ratio else ""


def _number(value: float, unit: str) -> str:
    if unit == "cosine":
        return f"{value:.7f}"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 or abs(value) >= 100 else f"{value:.1f}"


def _machine_lines(machine: dict[str, Any], run: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"Machine: {machine['cpu']}, {machine['usable']} cores ({', '.join(machine['flags'])}), "
        f"{machine['memory_gib']} GiB, {gpus}; measured side on cores {run['server_cores']}, load on "
        f"{run['client_cores']}. {run['date']}, {run['rounds']} round(s), medians. "
        f"Python {machine['python']}; {packages}."
    )


def _target_table(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return ""
    lines = ["| target | measured | asked for | |", "|---|---|---|---|"]
    lines += [f"| {v.text} | {v.measured} | {v.asked} | {v.words} |" for v in verdicts]
    return "## Targets\n\n" + "\n".join(lines)


def _suite_table(sheet: Sheet, suite: str) -> str:
    lines = [
        f"## {suite}",
        "",
        "| subject | metric | median | lowest | highest | Twolane is |",
        "|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_cells(sheet, row)) + " |" for row in sheet.rows(suite)]
    return "\n".join(lines)
