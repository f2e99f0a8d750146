"""The README's examples, run as they are printed; only the address is another one.

A block is run when the line before it is `<!-- run; shows: A | B -->`: it then has to succeed, and A and B have to be
in what it prints. Blocks share one shell, as they do for a reader who pastes them one after the other.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
BLOCK = re.compile(
    r"^<!-- run(?P<python> python)?; shows: (?P<shows>.+?) -->\n```\w+\n(?P<code>.+?)^```$",
    re.MULTILINE | re.DOTALL,
)
MARK = "=== end of block"


@dataclass(frozen=True)
class Example:
    code: str
    is_python: bool
    shows: tuple[str, ...]


def examples(page: Path) -> list[Example]:
    found = BLOCK.finditer(page.read_text("utf-8"))
    return [Example(m["code"], bool(m["python"]), tuple(m["shows"].split(" | "))) for m in found]


README = examples(ROOT / "README.md")


def run_all(blocks: list[Example], address: str, folder: Path) -> list[str]:
    """Run the blocks in one shell, which ends at the first that fails, and return what each printed."""
    lines = ["set -eu"]
    for block in blocks:
        code = block.code.replace(ADDRESS, address)
        lines += [f"{sys.executable} - <<'END'\n{code}END" if block.is_python else code, f"echo; echo '{MARK}'"]
    # The examples use the repository's own virtual environment; what they write must not land in the repository.
    (folder / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    printed = done.stdout.split(MARK)[:-1]
    assert done.returncode == 0, f"block {len(printed) + 1} failed: {done.stdout}\n{done.stderr}"
    return printed


@pytest.fixture(scope="module")
def printed(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return run_all(README, stack.url, tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("number", range(len(README)), ids=lambda number: f"block-{number + 1}")
def test_an_example_prints_what_it_promises(printed: list[str], number: int) -> None:
    # Whether a server puts a space after a colon is not what is promised.
    output = printed[number].replace('": ', '":')
    assert [text for text in README[number].shows if text not in output] == [], output


def test_every_main_endpoint_has_an_example() -> None:
    code = "\n".join(example.code for example in README)
    promised = ["/v1/embeddings", "/v1/rerank", "/v1/jobs", "/results?format=npy", "-X DELETE", "/v1/models", "/readyz"]
    assert [path for path in promised if path not in code] == []


def test_the_two_commands_come_first() -> None:
    opening = (ROOT / "README.md").read_text("utf-8").splitlines()[:6]
    assert [line.split("#")[0].strip() for line in opening if line.startswith("make ")] == ["make demo", "make test"]
