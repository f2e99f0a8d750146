"""The commands around jobs, as a person and as a machine sees them."""

import time
from pathlib import Path

import pytest

from tests.client.program import run_program, start_program
from tests.support.own_stack import OwnStack
from twolane import Twolane


def see(service: OwnStack, folder: Path, *arguments: str) -> tuple[int, str, str]:
    with start_program(service.url, folder, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_a_job_is_listed_shown_changed_and_read(service: OwnStack, client: Twolane, tmp_path: Path) -> None:
    job = client.jobs.create([f"command {number}" for number in range(20_000)], model="fake")
    for verb, status in (("pause", "paused"), ("resume", None), ("cancel", None)):
        code, lines, _ = run_program(service.url, tmp_path, verb, job.id)
        assert (code, lines[0]["id"], status in {None, lines[0]["status"]}) == (0, job.id, True)
    code, lines, _ = run_program(service.url, tmp_path, "job", job.id, "--wait")
    assert (code, lines[0]["status"]) == (0, "cancelled")
    code, lines, _ = run_program(service.url, tmp_path, "jobs", "--status", "cancelled")
    assert job.id in {line["id"] for line in lines}
    code, output, _ = see(service, tmp_path, "jobs")
    assert (code, job.id in output, "cancelled" in output) == (0, True, True)
    code, output, _ = see(service, tmp_path, "job", job.id)
    assert (code, "20,000" in output) == (0, True)


def test_results_and_failed_ones_are_printed_a_line_each(service: OwnStack, client: Twolane, tmp_path: Path) -> None:
    job = client.jobs.create(["good", "POISON"], model="fake")
    client.jobs.wait(job.id)
    code, lines, _ = run_program(service.url, tmp_path, "results", job.id)
    assert (code, [line["index"] for line in lines], len(lines[0]["embedding"])) == (0, [0, 1], 16)
    code, lines, _ = run_program(service.url, tmp_path, "results", job.id, "--failed")
    assert (code, [line["index"] for line in lines], "error" in lines[0]) == (0, [1], True)
    code, lines, _ = run_program(service.url, tmp_path, "retry", job.id)
    assert (code, lines[0]["id"]) == (0, job.id)


def test_jobs_that_have_not_ended_are_watched_and_their_results_followed(
    service: OwnStack, client: Twolane, tmp_path: Path
) -> None:
    job = client.jobs.create(["a", "b"], model="fake", name="[night] run", not_before=time.time() + 3600)
    code, output, _ = see(service, tmp_path, "top", "--once")
    assert (code, "[night] run" in output, "0% of 2" in output) == (0, True, True)
    code, lines, _ = run_program(service.url, tmp_path, "top", "--once")
    assert (code, job.id in {line["id"] for line in lines[0]}) == (0, True)
    client.jobs.cancel(job.id)
    job = client.jobs.create([f"followed by command {number}" for number in range(3000)], model="fake")
    code, lines, _ = run_program(service.url, tmp_path, "results", job.id, "--follow")
    assert (code, [line["index"] for line in lines]) == (0, list(range(3000)))


def test_models_are_listed(service: OwnStack, tmp_path: Path) -> None:
    code, lines, _ = run_program(service.url, tmp_path, "models")
    assert (code, lines[0]["id"], lines[0]["ready"]) == (0, "fake", True)
    code, output, _ = see(service, tmp_path, "models")
    assert (code, "fake" in output) == (0, True)


def test_an_unknown_job_is_a_sentence(service: OwnStack, tmp_path: Path) -> None:
    code, output, errors = see(service, tmp_path, "job", "job_nobody")
    assert (code, output) == (5, "")
    assert errors.startswith("twolane: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["embed", "--help"]])
def test_help_needs_no_server(tmp_path: Path, arguments: list[str]) -> None:
    with start_program("http://127.0.0.1:9", tmp_path, *arguments) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, "twolane" in output) == (0, "", True)
