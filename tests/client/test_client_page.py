"""`docs/quickstart.md` and `docs/client.md`, run as they are printed; only the addresses are others."""

from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import RunningPostgres
from tests.e2e.test_readme import Example, examples, run_all

# Commands that import large libraries; on a busy machine that takes long.
pytestmark = pytest.mark.timeout(400)
DOCS = Path(__file__).parents[2] / "docs"
DATABASE = "postgresql://postgres@127.0.0.1/postgres"
PAGES = {name: examples(DOCS / f"{name}.md") for name in ("quickstart", "client")}


@pytest.fixture(scope="module", params=PAGES)
def page(
    request: Any, stack: Any, postgres: RunningPostgres, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Example, str]]:
    blocks = PAGES[request.param]
    there = [Example(one.code.replace(DATABASE, postgres.get_uri()), one.is_python, one.shows) for one in blocks]
    return list(zip(blocks, run_all(there, stack.url, tmp_path_factory.mktemp("reader")), strict=True))


def test_every_example_prints_what_it_promises(page: list[tuple[Example, str]]) -> None:
    missing = [(text, printed) for example, printed in page for text in example.shows if text not in printed]
    assert page
    assert missing == []


def test_the_page_shows_every_kind_of_sink() -> None:
    code = "\n".join(one.code for one in PAGES["client"])
    assert [
        one for one in ("--to vectors.parquet", "#passages", "qdrant+file:", "twolane rerank") if one not in code
    ] == []
