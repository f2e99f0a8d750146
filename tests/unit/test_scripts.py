"""Every Lua script against its declaration: the names are the same on both sides, and nothing is counted by hand."""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.keys import Key
from tasks.scripts import Script, command, source_of

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "tasks").glob("*/lua/*.lua") if not path.stem.startswith("_"))
# What Lua and Redis bring along.
GIVEN = {
    *(
        "and",
        "break",
        "do",
        "else",
        "elseif",
        "end",
        "false",
        "for",
        "function",
        "if",
        "in",
        "local",
        "nil",
        "not",
        "or",
    ),
    *("repeat", "return", "then", "true", "until", "while", "cjson", "ipairs", "math", "next", "pairs", "redis"),
    *("string", "struct", "table", "tonumber", "tostring", "unpack"),
}


def declared() -> list[type[Script]]:
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        if "(Script)" in path.read_text("utf-8"):
            importlib.import_module(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    return sorted((cls for cls in Script.__subclasses__() if cls.__module__.startswith("tasks.")), key=str)


SCRIPTS = {cls.__name__: cls for cls in declared()}


def words(body: str) -> Iterator[tuple[str, str]]:
    """Each name that is no field of a table, with what follows it."""
    code = re.sub(r"^#!.*|'[^']*'|--.*", "''", body)
    for found in re.finditer(r"(?<![\w.:#])#?([A-Za-z_]\w*)(\s*=(?!=))?", code):
        yield found[1], found[2] or ""


def introduced(body: str) -> set[str]:
    """Names that a script itself introduces: locals, functions, their parameters, and those of loops."""
    lists = re.findall(r"local (?!function)([\w, ]+)|for ([\w, ]+?) (?:in|=)|function \w*\(([\w, ]*)\)", body)
    return set(re.findall(r"\w+", " ".join(map(" ".join, lists)))) | set(re.findall(r"local function (\w+)", body))


def test_every_script_has_one_declaration_and_every_declaration_a_script() -> None:
    assert sorted(str(source_of(cls).file) for cls in SCRIPTS.values()) == [str(path) for path in FILES]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_counts_its_keys_or_arguments_by_hand(name: str) -> None:
    assert not re.search(r"\b(KEYS|ARGV)\b", source_of(SCRIPTS[name]).body)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_name_that_is_declared_is_used(name: str) -> None:
    source = source_of(SCRIPTS[name])
    used = {word for word, _ in words(source.body)}
    assert [known for known in source.names if known not in used] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_name_that_is_used_is_declared(name: str) -> None:
    source = source_of(SCRIPTS[name])
    known = GIVEN | set(source.names) | introduced(source.body)
    assert sorted({word for word, assigned in words(source.body) if word not in known and not assigned}) == []


@dataclass(frozen=True, slots=True)
class Pair:
    left: Key
    count: int


class EchoScript(Script):
    pair: Pair
    flag: bool
    limit: int | None
    text: str
    lists: Sequence[Key]
    rest: Sequence[bytes]


def test_a_call_sends_its_fields_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lua").mkdir()
    (tmp_path / "lua" / "_piece.lua").write_text("local more = 1\n")
    (tmp_path / "lua" / "echo.lua").write_text("#!lua\n-- What it does.\n-- include: _piece\nreturn more\n")
    monkeypatch.setattr("tasks.scripts.resources.files", lambda _: tmp_path)
    call = EchoScript(
        Pair(Key("k1"), 3), flag=True, limit=None, text="", lists=[Key("k2"), Key("k3")], rest=[b"x", b"y"]
    )
    name, text, *values = command(call)
    assert (name, values) == ("EVAL", [3, "k1", "k2", "k3", 3, 1, "", "", b"x", b"y"])
    assert text == (
        "#!lua\n"
        "local LEFT, LISTS = KEYS[1], { unpack(KEYS, 2) }\n"
        "local count, flag, limit, text, rest = tonumber(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[3]), ARGV[4], "
        "{ unpack(ARGV, 5) }\n"
        "local more = 1\n\nreturn more\n"
    )
