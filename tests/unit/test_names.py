"""One name, one thing: no two public classes of the server share a name, and few modules do."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "workers", "tasks", "config", "stack")
# Names that say the same of each package that they stand in: its routes and bodies, its errors, its health check, ...
SHARED = {"__init__", "__main__", "errors", "health", "routes", "schemas", "store", "views"}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_no_two_modules_have_one_name() -> None:
    places = defaultdict(list)
    for path in modules():
        places[path.stem].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED} == {}


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for path in modules():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
