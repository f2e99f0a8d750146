"""The snippets of `docs/clients`, run as they are printed, against the running stack with the real model.

Only the address is another one. What a snippet leaves in `vectors` is compared with the reference library's vectors.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.client_environment import (
    COHERE5,
    NEWEST,
    installed,
    node_folder,
    python_program,
    run_code,
    vocabulary_folder,
)
from tests.support.client_pages import ADDRESS, TEXTS, Snippet, read_snippets
from tests.support.product import reference
from tests.support.stack_fixture import RunningStack

# The first test of each language installs its clients: one to several minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SNIPPETS = read_snippets()
MARK = "=== vectors "
PRINT_VECTORS = {
    "python": f"import json\nprint('{MARK}' + json.dumps([[float(x) for x in vector] for vector in vectors]))\n",
    "js": f"console.log('{MARK}' + JSON.stringify(vectors));\n",
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabulary_folder(tmp_path_factory.mktemp("vocabulary"))


def run(snippet: Snippet, program: Path | str, url: str, folder: Path, vocabulary: Path) -> str:
    """Run a snippet in an empty folder and return what it printed, with its `vectors` on a marked line."""
    code = snippet.code.replace(ADDRESS, url)
    assert code != snippet.code, "the snippet does not say where the server is"
    if snippet.leaves_vectors:
        code += PRINT_VECTORS[snippet.language]
    return run_code(program, code, folder, vocabulary if snippet.needs_vocabulary else folder / "empty")


def check(snippet: Snippet, output: str) -> None:
    assert [text for text in snippet.shows if text not in output] == [], output
    if snippet.leaves_vectors:
        (line,) = [line for line in output.splitlines() if line.startswith(MARK)]
        vectors = np.array(json.loads(line.removeprefix(MARK)))
        np.testing.assert_allclose(vectors, reference(TEXTS), atol=1e-5)


def of(language: str) -> Any:
    chosen = [snippet for snippet in SNIPPETS if snippet.language == language]
    return pytest.mark.parametrize("snippet", chosen, ids=lambda snippet: snippet.name)


@of("python")
def test_a_snippet_does_what_its_page_promises(
    snippet: Snippet, stack: RunningStack, tmp_path: Path, vocabulary: Path
) -> None:
    program = installed(lambda: python_program(COHERE5 if snippet.needs_cohere5 else NEWEST))
    check(snippet, run(snippet, program, stack.url, tmp_path, vocabulary))


@pytest.mark.parametrize(
    "snippet", [s for s in SNIPPETS if s.name.startswith("openai-python")], ids=lambda snippet: snippet.name
)
def test_the_openai_snippets_work_with_the_newest_major_version_too(
    snippet: Snippet, stack: RunningStack, tmp_path: Path, vocabulary: Path
) -> None:
    check(snippet, run(snippet, sys.executable, stack.url, tmp_path, vocabulary))


@of("js")
def test_a_snippet_for_node_does_what_its_page_promises(
    snippet: Snippet, stack: RunningStack, tmp_path: Path, vocabulary: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(installed(node_folder) / "node_modules")
    check(snippet, run(snippet, "node", stack.url, tmp_path, vocabulary))
