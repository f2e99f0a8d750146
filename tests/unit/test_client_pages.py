"""The pages of `docs/clients` have snippets that are run, and name packages that are tested."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.client_environment import LOCKS, NODE_PACKAGES, ROOT
from tests.support.client_pages import ADDRESS, PAGES, TEXTS, read_installs, read_snippets

CONFIGURED = {"open-webui", "dify"}
CLIENTS = {
    *CONFIGURED, "openai-python", "openai-node", "cohere", "litellm", "langchain", "llama-index", "haystack",
    "chromadb", "text-embeddings-inference", "ollama", "azure-openai", "voyageai", "nvidia", "generated",
}  # fmt: skip
PROGRAMMED = sorted(CLIENTS - CONFIGURED)


def locked(group: str) -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^ ;\n]+)", LOCKS[group].read_text("utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def test_every_client_has_its_page_and_the_list_leads_to_it() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {*CLIENTS, "README", "generated"}
    listed = (PAGES / "README.md").read_text("utf-8")
    assert [name for name in CLIENTS if f"({name}.md)" not in listed] == []


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_a_page_begins_with_url_key_and_model(name: str) -> None:
    lines = (PAGES / f"{name}.md").read_text("utf-8").splitlines()
    assert [line.split(" ")[1] for line in lines[2:5]] == ["**URL**", "**Key**", "**Model**"]
    urls = re.findall(r"`(http[^`]+)`", lines[2])
    assert urls
    # What the list of clients says is what the page says.
    listed = (PAGES / "README.md").read_text("utf-8")
    (row,) = [row for row in listed.splitlines() if f"({name}.md)" in row]
    assert {url.replace("twolane.example", "127.0.0.1") for url in urls} <= set(re.findall(r"`(http[^`]+)`", row))


@pytest.mark.parametrize("name", PROGRAMMED)
def test_every_block_of_code_of_a_page_is_run(name: str) -> None:
    blocks = re.findall(r"^```(?:python|js)$", (PAGES / f"{name}.md").read_text("utf-8"), re.MULTILINE)
    run = [snippet for snippet in read_snippets() if re.fullmatch(rf"{name}-\d+", snippet.name)]
    assert len(blocks) == len(run) > 0
    assert all(ADDRESS in snippet.code for snippet in run)


def test_a_snippet_that_leaves_vectors_embeds_the_texts_whose_vectors_are_known() -> None:
    wrong = [s.name for s in read_snippets() if s.leaves_vectors and any(text not in s.code for text in TEXTS)]
    assert wrong == []


@pytest.mark.parametrize("name", PROGRAMMED)
def test_what_a_page_has_one_install_is_what_the_tests_install(name: str) -> None:
    packages = read_installs(PAGES / f"{name}.md")
    assert packages
    tested = {"pip": {package for group in LOCKS for package in locked(group)}, "npm": set(NODE_PACKAGES)}
    assert [package for tool, package in packages if package not in tested[tool]] == []


@pytest.mark.parametrize("group", LOCKS)
def test_a_lock_has_what_its_group_of_clients_asks_for(group: str) -> None:
    wanted_by_group = tomllib.loads(Path(ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"][group]
    versions = locked(group)
    unmet = [
        text
        for text in wanted_by_group
        if not (wanted := Requirement(text)).specifier.contains(versions.get(canonicalize_name(wanted.name), "0"))
    ]
    assert unmet == []
