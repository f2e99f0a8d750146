"""A real corpus at hand on every machine: what Python's own modules say about themselves.

Owns reading the sources with `ast`, so that nothing is imported or run, and the choice of what is worth reading.
"""

import ast
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Passage", "gather_passages"]

# Folders of the standard library that are about the library itself and not for its users.
_SKIPPED = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
)
_LEAST_CHARS, _MOST_CHARS = 25, 220
_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of documentation.

    Attributes:
        name: dotted name of what it documents, such as `csv.DictReader`.
        text: the name and the beginning of its documentation.
    """

    name: str
    text: str


def gather_passages(least: int) -> list[Passage]:
    """Return the documentation of the standard library, without repetitions; from installed packages, too, if too few.

    Args:
        least: how many are wanted at least.

    Raises:
        RuntimeError: there are not so many on this machine.
    """
    found: dict[str, Passage] = {}
    for folder in _folders():
        for passage in _read_folder(folder):
            found.setdefault(passage.text.partition(": ")[2], passage)
        if len(found) >= least:
            return list(found.values())
    raise RuntimeError(f"only {len(found)} documented names were found in Python's own sources")


def _folders() -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    packages = Path(sysconfig.get_path("purelib"))
    yield from (
        packages / name for name in ("numpy", "celery", "redis", "flask", "torch") if (packages / name).is_dir()
    )


def _read_folder(folder: Path) -> Iterator[Passage]:
    root = folder if folder.name == Path(sysconfig.get_path("stdlib")).name else folder.parent
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _SKIPPED.intersection(parts) and not any(part.startswith("_") and part != "__init__" for part in parts):
            module = ".".join(part for part in parts if part != "__init__")
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError, OSError):  # a template, or a file for another version of Python
                continue
            yield from _read_node(module, tree)


def _read_node(name: str, node: ast.Module | _Documented) -> Iterator[Passage]:
    documentation = ast.get_docstring(node) or ""
    if len(documentation) >= _LEAST_CHARS:
        yield Passage(name, f"{name}: {_beginning(documentation)}")
    for child in _public(node.body):
        yield from _read_node(f"{name}.{child.name}", child)


def _public(body: Iterable[ast.stmt]) -> Iterator[_Documented]:
    return (node for node in body if isinstance(node, _Documented) and not node.name.startswith("_"))


def _beginning(documentation: str) -> str:
    """Return the first sentences, on one line."""
    text = " ".join(documentation.split())
    if len(text) <= _MOST_CHARS:
        return text
    return text[:_MOST_CHARS].rsplit(" ", 1)[0]
