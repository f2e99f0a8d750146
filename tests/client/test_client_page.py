"""`docs/client.md`, run as it is printed; only the addresses are others."""

from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import RunningPostgres
from tests.e2e.test_readme import Example, examples, run_all

ROOT = Path(__file__).parents[2]
DATABASE = "postgresql://postgres@127.0.0.1/postgres"
PAGE = examples(ROOT / "docs" / "client.md")


@pytest.fixture(scope="module")
def printed(stack: Any, postgres: RunningPostgres, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    blocks = [Example(one.code.replace(DATABASE, postgres.get_uri()), one.is_python, one.shows) for one in PAGE]
    return run_all(blocks, stack.url, tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("number", range(len(PAGE)), ids=lambda number: f"block-{number + 1}")
def test_an_example_prints_what_it_promises(printed: list[str], number: int) -> None:
    assert [text for text in PAGE[number].shows if text not in printed[number]] == [], printed[number]


def test_the_page_shows_every_kind_of_sink() -> None:
    code = "\n".join(one.code for one in PAGE)
    assert [
        one for one in ("--to vectors.parquet", "#passages", "qdrant+file:", "twolane rerank") if one not in code
    ] == []
