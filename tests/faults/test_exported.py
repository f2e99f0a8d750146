"""The cache of exported models survives workers that start together, die in the middle, and broken files."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from config.catalog import ModelCard
from tests.support.checkpoints import make_checkpoint
from workers.models.export import MODEL, TOKENIZER
from workers.models.exported import find_or_export
from workers.models.folders.recognise import recognise

SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from config.catalog import ModelCard
    from workers.models.exported import find_or_export
    from workers.models.folders.recognise import recognise

    card = ModelCard.model_validate_json(sys.argv[1])
    recipe = recognise(card, Path(card.source.removeprefix("path:")))
    print(find_or_export(recipe, Path(sys.argv[2])), flush=True)
    """
)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return ModelCard(**make_checkpoint("bert", tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def export(card: ModelCard, cache: Path) -> Path:
    return find_or_export(recognise(card, Path(card.source.removeprefix("path:"))), cache)


def start(card: ModelCard, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, card.model_dump_json(), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def stamp(target: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in target.iterdir()}


def test_workers_that_start_together_export_once(card: ModelCard, cache: Path) -> None:
    workers = [start(card, cache) for _ in range(3)]
    answers = {worker.communicate(timeout=120)[0] for worker in workers}
    assert len(answers) == 1
    target = Path(answers.pop().strip())
    assert {path.name for path in cache.iterdir()} == {target.name, f"{target.name}.lock"}, "no draft stays behind"
    before = stamp(target)
    assert export(card, cache) == target
    assert stamp(target) == before, "what is whole is not built again"


@pytest.mark.parametrize("name", ["model.bin", pytest.param(TOKENIZER, marks=pytest.mark.slow), "seal.json"])
def test_a_broken_file_is_noticed_and_the_model_built_again(name: str, card: ModelCard, cache: Path) -> None:
    target = export(card, cache)
    whole = (target / name).read_bytes()
    broken = target / name
    if name == "model.bin":
        # One bit, in the middle: neither size nor date tells.
        broken.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    elif name == "seal.json":
        broken.unlink()
    else:
        broken.write_bytes(whole[: len(whole) // 2])
    assert export(card, cache) == target
    assert (target / name).read_bytes() == whole


def test_a_worker_killed_in_the_middle_of_an_export_leaves_a_cache_that_works(card: ModelCard, tmp_path: Path) -> None:
    with start(card, tmp_path) as first:
        end_s = time.monotonic() + 60
        while not list(tmp_path.glob(".draft-*")):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    target = export(card, tmp_path)
    assert (target / MODEL).is_file()
    assert not list(tmp_path.glob(".draft-*"))
