"""The console as an operator uses it: a real stack, a headless Chromium, and a worker that freezes."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from config.parent_death import tied_to_parent
from tests.support.stack_fixture import RunningStack, clean_environment, running_stack
from tests.support.web import write_keys

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (`apt-get install chromium`)"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROWS, TOO_LONG = 50_000, 40


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack with a keys file, and a second launcher beside its own, so that work can move."""
    folder = tmp_path_factory.mktemp("console")
    keys_file = write_keys(folder / "keys.toml", {"ops": 'admin = true\nname = "ops"', "acme": ""})
    with running_stack(folder, "fake", keys_file=str(keys_file), device="cpu", chunk_items="500") as running:
        more = clean_environment(
            redis_url=running.redis_url,
            models="fake",
            device="cpu",
            data_dir=str(folder / "more"),
            keys_file=str(keys_file),
        )
        command = [sys.executable, "-m", "workers.launch"]
        launcher = subprocess.Popen(command, cwd=folder, env=more, preexec_fn=tied_to_parent())  # noqa: PLW1509 - two system calls, no locks
        try:
            yield running
        finally:
            launcher.terminate()
            launcher.wait(20)


@pytest.fixture(scope="module")
def page(stack: RunningStack) -> Iterator["playwright.Page"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page()
        opened.set_default_timeout(60_000)
        opened.on("dialog", lambda dialog: dialog.accept())
        yield opened
        browser.close()


@pytest.fixture
def problems(page: "playwright.Page") -> list[str]:
    """What the browser complains about: errors of scripts, and what the policy of the pages forbids."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def submit(stack: RunningStack) -> str:
    """A job of 50,000 rows, of which some are too long for the model."""
    lines = [
        f'{{"id": "row-{i}", "text": "{"word " * 600 if i < TOO_LONG else f"row number {i} of the corpus"}"}}'
        for i in range(ROWS)
    ]
    answer = httpx.post(
        f"{stack.url}/v1/jobs?model=fake&truncate=none",
        content="\n".join(lines),
        headers={"Authorization": "Bearer acme", "Content-Type": "application/x-ndjson"},
        timeout=60,
    )
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def sign_in(stack: RunningStack, page: "playwright.Page") -> None:
    page.goto(f"{stack.url}/console")
    page.fill("#key", "acme")
    page.click("text=Sign in")
    expect(page.get_by_role("alert")).to_contain_text("admin = true")
    page.fill("#key", "ops")
    page.click("text=Sign in")


def test_a_job_is_watched_a_frozen_worker_is_named_and_failed_items_are_retried(
    stack: RunningStack, page: "playwright.Page", problems: list[str]
) -> None:
    sign_in(stack, page)
    problems.clear()  # the answer 403 to the wrong key
    expect(page.locator(".workers tbody tr")).to_have_count(2, timeout=120_000)

    # Its row comes by itself, and moves.
    job_id = submit(stack)
    row = page.locator(f"#row-{job_id}")
    expect(row).to_contain_text("running")
    expect(row).not_to_contain_text("0 / 50,000")

    # A worker freezes: the banner says which, and that its work runs elsewhere; thawed, it is well again.
    (frozen,) = stack.worker_pids()
    os.kill(frozen, signal.SIGSTOP)
    try:
        banner = page.locator(".banner")
        expect(banner).to_contain_text("is silent for", timeout=20_000)
        expect(page.locator(".workers")).to_contain_text("silent")
        health = httpx.get(f"{stack.url}/health", timeout=10).json()
        assert [one["condition"] for one in health["sick"]] == ["silent"]
        expect(row).to_have_count(0, timeout=180_000)  # it has ended without that worker
    finally:
        os.kill(frozen, signal.SIGCONT)
    expect(banner).to_have_count(0)
    assert f"#{frozen} is silent" in stack.log.read_text("utf-8")

    # Its failures are grouped; cut, they succeed.
    page.goto(f"{stack.url}/console/jobs/{job_id}")
    expect(page.locator(".failure")).to_contain_text(f"{TOO_LONG} × context_length_exceeded")
    expect(page.locator(".failure")).to_contain_text("id=row-0")
    with page.expect_download() as download:
        page.click("text=Download failed items")
    assert Path(download.value.path()).read_text("utf-8").count("context_length_exceeded") == TOO_LONG
    page.click("text=Retry with truncate=end")
    expect(page.locator("#message")).to_contain_text("1 job queued again")
    expect(page.locator("h1")).to_contain_text("succeeded", timeout=60_000)
    expect(page.locator(".failure")).to_have_count(0)
    expect(page.locator(".events")).to_contain_text("retried")

    assert problems == []


def test_a_key_is_made_works_and_is_revoked_and_texts_are_tried_by_hand(
    stack: RunningStack, page: "playwright.Page", problems: list[str]
) -> None:
    page.goto(f"{stack.url}/console/sign-in")
    page.fill("#key", "ops")
    page.click("text=Sign in")
    page.click("nav >> text=Keys")
    page.click("summary")
    page.fill("input[name=tenant]", "acme")
    page.fill("input[name=name]", "loader")
    page.click("text=Make the key")
    secret = page.locator("#secret").inner_text()
    jobs = f"{stack.url}/v1/jobs"
    assert httpx.get(jobs, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    page.locator("tr", has_text="loader").get_by_role("button", name="Revoke").click()
    expect(page.locator("#message")).to_contain_text("opens nothing any more")
    assert httpx.get(jobs, headers={"Authorization": f"Bearer {secret}"}).status_code == 401

    page.click("nav >> text=Try")
    page.click("text=Compute")
    expect(page.locator(".trial tbody tr")).to_have_count(3)
    assert problems == []
