"""A real corpus gathered at run time: paragraphs of the standard library's own documentation strings."""

import ast
import sysconfig
from functools import cache
from pathlib import Path

__all__ = ["passages"]


@cache
def _paragraphs() -> tuple[str, ...]:
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text("utf-8", "replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
                found.update(dict.fromkeys(part.strip() for part in doc.split("\n\n") if len(part) > 40))
    return tuple(found)


def passages(count: int) -> list[str]:
    """Return that many different passages, always the same ones on one Python version."""
    paragraphs = _paragraphs()
    return [f"{paragraphs[i % len(paragraphs)]} ({i})" for i in range(count)]
