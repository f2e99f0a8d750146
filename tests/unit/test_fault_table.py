"""The table of faults names tests that exist, each in its file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and "`" in line
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_row_names_a_test_that_exists(row: str) -> None:
    files = re.findall(r"`(tests/[a-z0-9_/]+\.py)`", row)
    code = "".join((ROOT / path).read_text("utf-8") for path in files)
    assert files
    assert [name for name in re.findall(r"`(test_[a-z_]+)`", row) if f"def {name}(" not in code] == []
