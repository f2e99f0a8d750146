"""Rules of the design that no linter knows: see docs/architecture.md."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "workers", "tasks", "config", "stack", "client", "benchmarks", "tests")
MAX_LINES = 400
# Names that say nothing about what is in the file.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        # Those of the gRPC service are generated.
        yield from (path for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.stem)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_by(*names: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after importing these."""
    script = f"import sys, {', '.join(names)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def module_names(package: str) -> list[str]:
    """All modules of a package, but those that start a program when they are imported."""
    paths = [path for path in modules(package) if path.name != "__main__.py"]
    return [relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("package", ["app", "tasks", "config", "stack"])
def test_a_fresh_interpreter_that_imports_it_has_no_device_library(package: str) -> None:
    loaded = imported_by(*module_names(package))
    assert (
        loaded & {"torch", "transformers", "FlagEmbedding", "modelscope", "openvino", "sentence_transformers"} == set()
    )


@pytest.mark.parametrize("package", ["tasks", "config", "stack", "workers"])
def test_only_the_web_room_loads_flask(package: str) -> None:
    names = module_names(package) if package != "workers" else ["workers"]
    assert "flask" not in imported_by(*names)


def test_only_the_keys_module_spells_a_redis_key() -> None:
    spelled = re.compile(r"""["']twolane:|\{\{\{|twolane:\{""")
    scripts = sorted((ROOT / "tasks").glob("*/lua/*.lua"))
    paths = [path for path in modules("app", "workers", "tasks", "stack") if relative(path) != "tasks/keys.py"]
    assert [relative(path) for path in (*paths, *scripts) if spelled.search(path.read_text("utf-8"))] == []


def test_the_keys_module_would_be_found_by_that_rule() -> None:
    assert '"twolane' in (ROOT / "tasks" / "keys.py").read_text("utf-8")


def test_every_code_of_a_failed_item_comes_from_the_error_tree() -> None:
    spelled = re.compile(r"""\bItemError\(\s*f?["']""")
    paths = modules("app", "workers", "tasks")
    assert [relative(path) for path in paths if spelled.search(path.read_text("utf-8"))] == []


def test_no_script_builds_a_key_name() -> None:
    """Every key reaches a script in KEYS: a key that is joined in Lua lands on the wrong node of a cluster."""
    built = re.compile(r"redis\.p?call\(\s*'[A-Z]+'\s*,\s*[^,)]*\.\.")
    scripts = sorted((ROOT / "tasks").glob("*/lua/*.lua"))
    assert [relative(path) for path in scripts if built.search(path.read_text("utf-8"))] == []


def test_no_module_is_longer_than_a_person_reads_at_once() -> None:
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in modules(*PACKAGES)}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [relative(path) for path in modules(*PACKAGES) if path.stem in EMPTY_NAMES] == []


@pytest.mark.parametrize("package", ["app", "workers", "tasks", "config", "stack", "client"])
def test_no_module_reads_the_environment_or_builds_settings_at_import(package: str) -> None:
    assert [relative(path) for path in modules(package) if _reads_environment_at_import(path)] == []


def _reads_environment_at_import(path: Path) -> bool:
    statements = [node for node in ast.parse(path.read_text("utf-8")).body if not _runs_later(node)]
    return any(_asks_environment(node) for statement in statements for node in ast.walk(statement))


def _runs_later(node: ast.stmt) -> bool:
    is_main = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    return is_main or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _asks_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in {"os.environ", "os.getenv"}
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"Settings", "Redis", "Redis.from_url"}
