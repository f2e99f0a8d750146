"""The error tree: codes that clients can rely on, and a page that lists them."""

import ast
import re
from pathlib import Path

import app.http.errors
import tasks.errors
from app.ops.error_reference import OUTPUT, error_classes, render_error_page

ROOT = Path(__file__).parents[2]
CLASSES = list(error_classes())


def test_two_errors_share_a_code_only_if_a_client_reacts_to_them_alike() -> None:
    by_code: dict[str, set[tuple[object, ...]]] = {}
    for error in CLASSES:
        by_code.setdefault(error.code, set()).add((error.__bases__, error.retryable))
    assert {code: kinds for code, kinds in by_code.items() if len(kinds) > 1} == {}


def test_every_error_says_its_code_itself() -> None:
    """An inherited code would change under a client when the tree is rearranged."""
    assert [error.__name__ for error in CLASSES if "code" not in vars(error)] == []


def test_every_error_is_in_the_drawing_of_the_tree_and_in_the_public_names() -> None:
    names = {error.__name__ for error in CLASSES if error.__module__ == tasks.errors.__name__}
    assert names == set(tasks.errors.__all__)
    assert {name for name in names if not re.search(rf"\b{name}\b", tasks.errors.__doc__ or "")} == set()


def test_errors_are_declared_in_two_files_only() -> None:
    """Whatever is declared elsewhere has no place on the page of codes."""
    names = {error.__name__ for error in CLASSES}
    homes = {Path(module.__file__ or "") for module in (tasks.errors, app.http.errors)}
    paths = [path for room in ("app", "tasks", "workers", "config") for path in (ROOT / room).rglob("*.py")]
    declared = [
        f"{path.name}: {node.name}"
        for path in paths
        if path not in homes
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and names & {ast.unparse(base) for base in node.bases}
    ]
    assert declared == []


def test_the_page_of_codes_is_what_the_tree_says() -> None:
    assert (ROOT / OUTPUT).read_text("utf-8") == render_error_page(), f"{OUTPUT} is out of date: run `make docs`"
