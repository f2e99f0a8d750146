"""Documents point to things that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from app import create_app
from config.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Those of the client come last.
SETTINGS = {f"TWOLANE_{name.upper()}" for name in (*Settings.model_fields, "url", "api_key", "model")}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
SOURCE = re.compile(r"`((?:app|workers|tasks|config|stack|tests|docs|deploy|scripts|benchmarks)/[\w./-]+)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_source_file_that_is_named_exists(page: Path) -> None:
    paths = SOURCE.findall(page.read_text("utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    assert set(re.findall(r"\bTWOLANE_[A-Z_]*[A-Z]\b", page.read_text("utf-8"))) - SETTINGS == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named - targets == set()


def test_make_alone_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    declared = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert declared is not None
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in declared[1].split() if f"make {target} " not in listed] == []


def test_the_api_page_has_every_path_of_the_api(tmp_path: Path) -> None:
    app = create_app(Settings(_env_file=None, redis_url="redis://127.0.0.1:1/0", data_dir=tmp_path))
    paths = app.test_client().get("/openapi.json").get_json()["paths"]
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert {"/v1/embeddings", "/v1/jobs"} <= paths.keys()
    assert [path for path in paths if path not in page] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", navigation))
    # Decisions are many: their own page lists them.
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert {page for page in pages if not re.match(r"decisions/\d", page)} == listed
