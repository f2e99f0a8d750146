"""Compose file, Dockerfiles and Procfile agree with the code. Building the images needs an engine and is not tried."""

import importlib.util
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name in SERVICES if name != "redis"]
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
VARIABLE = re.compile(r"\bTWOLANE_[A-Z_]+\b")
SETTINGS = {f"TWOLANE_{name.upper()}" for name in Settings.model_fields}


def procfile() -> dict[str, str]:
    lines = (ROOT / "Procfile").read_text("utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command that we start, by where it is written."""
    for name, line in procfile().items():
        yield f"Procfile:{name}", [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    for name in OURS:
        if "command" in SERVICES[name]:
            yield f"compose:{name}", SERVICES[name]["command"]
    for line in re.findall(r"^\t@\$\(BIN\)/(python -m .+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE):
        if "pytest" not in line:
            yield "Makefile", line.split()
    for path in DOCKERFILES:
        command = re.findall(r"^CMD (\[.+\])$", path.read_text("utf-8"), re.MULTILINE)[-1]
        yield path.name, yaml.safe_load(command)


@pytest.mark.parametrize(
    "path",
    ["docker-compose.yml", "Procfile", "deploy/compose.worker.yml", "deploy/systemd/twolane-worker.service"]
    + [f"deploy/{path.name}" for path in DOCKERFILES],
)
def test_every_variable_that_it_names_is_a_setting(path: str) -> None:
    named = set(VARIABLE.findall((ROOT / path).read_text("utf-8")))
    assert named
    assert named - SETTINGS == set()


@pytest.mark.parametrize(("place", "command"), list(commands()))
def test_every_command_starts_something_that_exists(place: str, command: list[str]) -> None:
    if command[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(command[2]) is not None
        package = importlib.util.find_spec(f"{command[2]}.__main__") if "." not in command[2] else True
        assert package is not None
    else:
        assert command[:4] == ["celery", "-A", "tasks", "flower"]
        assert importlib.util.find_spec("tasks.celery") is not None


def test_the_procfile_has_the_processes_of_the_stack() -> None:
    assert {"web", "worker", "flower"} <= procfile().keys()


def test_every_dashboard_asks_for_a_password() -> None:
    # By the environment: every user of a machine can read the arguments of a process.
    assert "FLOWER_BASIC_AUTH=" in procfile()["flower"]
    assert "FLOWER_ADDRESS=127.0.0.1" in procfile()["flower"]
    assert "${TWOLANE_FLOWER_PASSWORD:?" in SERVICES["flower"]["environment"]["FLOWER_BASIC_AUTH"]


def test_no_port_is_open_to_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_each_gpu_has_one_worker_service_and_no_worker_starts_unasked() -> None:
    workers = {name: service for name, service in SERVICES.items() if name.startswith("worker")}
    reserved = [
        device["device_ids"]
        for service in workers.values()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    ]
    assert reserved == [["0"], ["1"]]
    # On a machine without a GPU a reservation stops the start, so every worker waits for its profile.
    assert [name for name, service in workers.items() if not service.get("profiles")] == []


def test_the_store_keeps_what_it_was_given() -> None:
    words = SERVICES["redis"]["command"]
    options = dict(itertools.pairwise(words))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_nobody_reaches_the_store_without_its_password() -> None:
    service = SERVICES["redis"]
    words = " ".join(service["command"])
    assert "--user default off" in words
    assert re.search(r"--user twolane on >\$\{REDIS_PASSWORD:\?.+?\} ~twolane:\*", words)
    assert service["cap_drop"] == ["ALL"]
    assert "ports" not in service


@pytest.mark.parametrize("name", OURS)
def test_every_process_waits_for_the_store_and_has_time_to_stop(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert service["stop_grace_period"]
    assert service["environment"]["TWOLANE_REDIS_URL"].endswith("@redis:6379/0")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_no_image_runs_as_root(path: Path) -> None:
    assert re.findall(r"^USER (\w+)$", path.read_text("utf-8"), re.MULTILINE)[-1] == "10001"


def test_the_web_image_gets_no_device_library() -> None:
    text = (ROOT / "deploy" / "web.Dockerfile").read_text("utf-8")
    assert re.findall(r"'\.\[(.+?)\]'", text) == ["web,s3,tracing"]
    assert "COPY workers" not in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_everything_that_an_image_copies_reaches_the_builder(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text("utf-8"), re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert set(copied) - kept == set()


def test_every_data_file_of_a_package_is_installed_with_it() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    for package in ("app", "workers", "tasks", "config", "stack"):
        installed = {path for pattern in declared.get(package, []) for path in (ROOT / package).glob(pattern)}
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
        assert files - installed == set(), f"add them to package-data of {package} in pyproject.toml"


def pins() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.lstrip().startswith("#")]


def asked_by(folder: Path) -> Iterator[str]:
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return itertools.chain(project["dependencies"], *project["optional-dependencies"].values())


def test_the_lock_pins_everything_that_the_project_asks_for() -> None:
    wanted = [Requirement(line) for folder in (ROOT, ROOT / "client") for line in asked_by(folder)]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, pins())}
    assert [one.name for one in wanted if canonicalize_name(one.name) not in pinned] == [], "run `make lock`"
    versions = {one: pinned[canonicalize_name(one.name)] for one in wanted}
    assert [one.name for one in wanted if not one.specifier.contains(versions[one])] == [], "run `make lock`"


def test_the_lock_names_no_address_and_no_build() -> None:
    # A local suffix as +cpu, an address or an option would bind the lock to one machine's index.
    assert [pin for pin in pins() if re.search(r"://|\+|^-| @ ", pin)] == []
