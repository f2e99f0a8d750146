"""Cores are shared out among the workers of a machine, near their devices, and one is left for the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import Settings
from tasks.errors import ConfigError
from workers import cores
from workers.boot import _choose_hardware
from workers.cores import Cores, parse_affinity, plan_cores

ALL = frozenset[int]()


def plan(workers: int = 1, **fields: object) -> list[Cores]:
    return plan_cores(Settings(_env_file=None, **fields), [ALL] * workers)  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine one with so many cores; with `threads=2` core N and N + half are one."""

    def make(count: int, threads: int = 1) -> None:
        monkeypatch.setattr(cores, "_allowed_cores", lambda: frozenset(range(count)))
        monkeypatch.setattr(cores, "_CPUS", tmp_path)
        apart = count // threads
        for core in range(count):
            folder = tmp_path / f"cpu{core}" / "topology"
            folder.mkdir(parents=True)
            siblings = range(core % apart, count, apart)
            (folder / "thread_siblings_list").write_text(",".join(map(str, siblings)) + "\n", "utf-8")

    return make


@pytest.mark.parametrize(
    ("text", "expected"), [("", set()), ("0-3", {0, 1, 2, 3}), ("0,2", {0, 2}), (" 1 , 4-5 ", {1, 4, 5})]
)
def test_a_list_of_cores_is_read(text: str, expected: set[int]) -> None:
    assert parse_affinity(text) == expected


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "0;1"])
def test_a_bad_list_of_cores_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="TWOLANE_CPU_AFFINITY"):
        parse_affinity(text)


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (2, 2), (3, 3), (4, 3), (16, 15)])
def test_one_worker_is_not_pinned_and_leaves_one_core_of_four(
    machine: Callable[..., None], count: int, threads: int
) -> None:
    machine(count)
    assert plan() == [Cores(threads)]


def test_several_workers_have_cores_of_their_own_and_one_is_left(machine: Callable[..., None]) -> None:
    machine(16)
    shares = plan(4)
    assert [share.threads for share in shares] == [4, 4, 4, 3]
    assert frozenset().union(*(share.affinity for share in shares)) == set(range(1, 16))
    assert sum(len(share.affinity) for share in shares) == 15


def test_workers_with_less_than_two_cores_each_are_not_pinned(machine: Callable[..., None]) -> None:
    machine(4)
    assert plan(3) == [Cores(1)] * 3
    assert plan(8) == [Cores(1)] * 8, "more workers than cores"
    assert plan(4, cpu_affinity="0-3") == [Cores(1, frozenset({0, 1, 2, 3}))] * 4


def test_hyper_threads_of_one_core_stay_together(machine: Callable[..., None]) -> None:
    machine(8, threads=2)
    assert plan(3) == [Cores(2, frozenset({core, core + 4})) for core in (1, 2, 3)]


def test_a_worker_gets_cores_on_the_side_of_its_gpu(machine: Callable[..., None]) -> None:
    machine(8)
    left, right = frozenset(range(4)), frozenset(range(4, 8))
    settings = Settings(_env_file=None)
    assert plan_cores(settings, [right, left]) == [Cores(4, right), Cores(3, left - {0})]
    assert plan_cores(settings, [left]) == [Cores(3, left - {0})], "the other side is for the web and Redis"
    assert plan_cores(settings, [right, right]) == [Cores(2, frozenset({4, 6})), Cores(2, frozenset({5, 7}))]
    # One that may use any core takes those first that no other one wants.
    assert [share.threads for share in plan_cores(settings, [left, ALL])] == [3, 4]
    # Elsewhere where nothing near is left or allowed.
    assert plan_cores(Settings(_env_file=None, cpu_affinity="0-3"), [right]) == [Cores(4, left)]
    assert all(share.threads for share in plan_cores(settings, [frozenset({4})] * 3))


def test_threads_and_affinity_of_the_settings_win(machine: Callable[..., None]) -> None:
    machine(8)
    assert plan(cpu_affinity="0-1") == [Cores(2, frozenset({0, 1}))]
    assert plan(cpu_affinity="0-1", threads=5)[0].threads == 5
    assert plan(2, cpu_affinity="0-3") == [Cores(2, frozenset({0, 2})), Cores(2, frozenset({1, 3}))]
    with pytest.raises(ConfigError, match="may use"):
        plan(cpu_affinity="7-8")


def test_a_worker_computes_with_the_share_that_was_planned_for_it(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8)
    pinned: list[object] = []
    monkeypatch.setattr("os.sched_setaffinity", lambda _, share: pinned.append(share))
    for name in (*Cores(1).environment, "TWOLANE_CPU_AFFINITY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert _choose_hardware(Settings(_env_file=None, device="cpu")).threads == 7, "one that was started by hand"
    share = plan(2, cpu_affinity="0-5", threads=0)[1]
    for name, value in share.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cores, "_allowed_cores", lambda: share.affinity)
    assert _choose_hardware(Settings(_env_file=None, device="cpu")).threads == 3, "one of two that the launcher started"
    assert pinned == [{1, 3, 5}]
