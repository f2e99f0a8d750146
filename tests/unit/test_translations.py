"""The pages in Chinese follow those in English: each names the version that it translates."""

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs/zh").glob("*.md"))]
MARK = re.compile(r"<!-- translates (\S+) ([0-9a-f]{16}) -->")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_translation_is_of_the_page_as_it_is_now(page: Path) -> None:
    marked = MARK.match(page.read_text("utf-8"))
    assert marked is not None, f"{page.name} does not begin with the page that it translates"
    source = (ROOT / marked[1]).read_bytes()
    now = hashlib.sha256(source).hexdigest()[:16]
    assert marked[2] == now, f"{marked[1]} has changed: translate the change, then write {now} into {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_translation_has_the_code_of_its_page(page: Path) -> None:
    text = page.read_text("utf-8")
    marked = MARK.match(text)
    assert marked is not None
    blocks = re.compile(r"```\w*\n.*?```", re.DOTALL)
    assert blocks.findall(text) == blocks.findall((ROOT / marked[1]).read_text("utf-8"))
