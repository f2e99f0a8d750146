"""Every prefix with which litellm reranks, as `docs/clients/litellm.md` lists them, with the real library.

The prefixes read the same answer in different ways, and fail on a document that is not of the form they know.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_environment import installed, python_program, run_code
from tests.support.client_pages import ADDRESS, PAGES
from tests.support.product import MODEL
from tests.support.stack_fixture import RunningStack

# The first test installs the clients: one to several minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PREFIXES = dict(
    re.findall(r"^\| `(\w+)/` \| `(http.+?)` \|$", (PAGES / "litellm.md").read_text("utf-8"), flags=re.MULTILINE)
)
# Their adapters know no `top_n`, `return_documents` or id: they read the ranking, and no more.
RANKING_ONLY = {"huggingface", "nvidia_nim"}
DOCUMENTS = ["Yeast makes bread rise.", {"text": "The tide follows the moon."}]
CODE = """
import json
import litellm

asked = json.loads({asked!r})
answers = []
for options in ({{}}, {{"top_n": 1}}, {{"return_documents": False}}):
    answer = litellm.rerank(**asked, **options)
    answers.append({{"results": answer.results, "id": answer.id, "meta": answer.meta}})
print("=== " + json.dumps(answers))
"""


def test_the_page_lists_prefixes() -> None:
    assert {"hosted_vllm", "jina_ai", "cohere", "infinity"} <= PREFIXES.keys()


@pytest.mark.parametrize("prefix", [prefix for prefix in PREFIXES if prefix not in RANKING_ONLY])
def test_a_prefix_reads_the_ranking_and_its_documents(prefix: str, stack: RunningStack, tmp_path: Path) -> None:
    whole, best, bare = rerank(prefix, stack, tmp_path)
    assert [result["document"]["text"] for result in whole["results"]] == [
        "The tide follows the moon.",
        "Yeast makes bread rise.",
    ]
    assert order(whole) == order(bare) == [1, 0]
    assert order(best) == [1]
    assert [result for result in bare["results"] if result.get("document")] == []
    assert all(answer["id"].startswith("rerank-") for answer in (whole, best, bare))
    assert whole["meta"]["billed_units"]


@pytest.mark.parametrize("prefix", sorted(RANKING_ONLY))
def test_the_other_prefixes_read_the_ranking(prefix: str, stack: RunningStack, tmp_path: Path) -> None:
    whole, _, bare = rerank(prefix, stack, tmp_path)
    assert order(whole) == order(bare) == [1, 0]


def rerank(prefix: str, stack: RunningStack, folder: Path) -> list[dict[str, Any]]:
    """The answers to a plain call, one with `top_n` and one without documents."""
    base = PREFIXES[prefix].replace(ADDRESS, stack.url)
    asked = {"model": f"{prefix}/{MODEL}", "query": "What makes the sea rise and fall?", "documents": DOCUMENTS}
    asked |= {"api_base": base, "api_key": "none"}
    output = run_code(installed(python_program), CODE.format(asked=json.dumps(asked)), folder, folder)
    (line,) = [line for line in output.splitlines() if line.startswith("=== ")]
    answers: list[dict[str, Any]] = json.loads(line.removeprefix("=== "))
    return answers


def order(answer: dict[str, Any]) -> list[int]:
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    return [result["index"] for result in answer["results"]]
