"""The life of a file, on a real server and on two real file systems: a folder and fsspec's memory."""

from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import ConfigError, NotFound, StoreUnavailable
from tasks.files.store import FileHideScript, FileStore, FileWriter, NewFile, StoredFile


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, redis: Redis, settings: Settings, tmp_path: Path) -> FileStore:
    url = "" if request.param == "folder" else f"memory://{tmp_path}"
    return FileStore(redis, settings.model_copy(update={"files_url": url}))


@pytest.fixture
def folder(redis: Redis, settings: Settings) -> tuple[FileStore, Path]:
    return FileStore(redis, settings), settings.data_dir / "files"


def new(tenant: str = "ada", purpose: str = "batch", ttl_s: float = 3600, filename: str = "in.jsonl") -> NewFile:
    return NewFile(tenant, filename, purpose, ttl_s)  # type: ignore[arg-type]


def put(files: FileStore, body: bytes = b"body", **fields: object) -> StoredFile:
    with files.open_writer(new(**fields)) as writer:  # type: ignore[arg-type]
        writer.write(body)
        return writer.commit()


def read(files: FileStore, file: StoredFile) -> bytes:
    with files.open(file) as handle:
        return handle.read()


def test_a_file_comes_back_as_it_was_written(files: FileStore) -> None:
    with files.open_writer(new(filename="ünï \n.jsonl")) as writer:
        for block in (b"one", b"", b"\x00\xfftwo"):
            writer.write(block)
        stored = writer.commit()
    assert files.get(stored.id, "ada") == stored
    assert (stored.size_bytes, stored.filename, stored.purpose) == (8, "ünï \n.jsonl", "batch")
    assert stored.expires_at - stored.created_at == 3600
    assert read(files, stored) == b"one\x00\xfftwo"


def test_a_file_is_nobody_elses(files: FileStore) -> None:
    stored = put(files)
    for attempt in (files.get, files.delete):
        with pytest.raises(NotFound):
            attempt(stored.id, "bob")
    assert files.list("bob", limit=10) == []
    assert read(files, files.get(stored.id, "ada")) == b"body"


def test_a_deleted_file_is_gone_with_its_bytes(folder: tuple[FileStore, Path], redis: Redis) -> None:
    files, path = folder
    stored = put(files)
    files.delete(stored.id, "ada")
    with pytest.raises(NotFound):
        files.get(stored.id, "ada")
    with pytest.raises(NotFound):
        files.open(stored)
    assert files.list("ada", limit=10) == []
    assert [entry for entry in path.rglob("*") if entry.is_file()] == []
    assert list(redis.scan_iter("*file*")) == []


def test_a_file_that_is_not_committed_leaves_nothing(folder: tuple[FileStore, Path], redis: Redis) -> None:
    files, path = folder
    with files.open_writer(new()) as writer:
        writer.write(b"half")
    assert [entry for entry in path.rglob("*") if entry.is_file()] == []
    assert list(redis.scan_iter("*file*")) == []


def test_a_file_is_not_visible_before_it_is_complete(files: FileStore) -> None:
    writer = files.open_writer(new())
    writer.write(b"half")
    assert files.list("ada", limit=10) == []
    with pytest.raises(NotFound):
        files.get(writer.id, "ada")
    writer.commit()
    assert [file.id for file in files.list("ada", limit=10)] == [writer.id]


def die_while_writing(files: FileStore) -> FileWriter:
    """Leave what a killed process leaves: bytes, and an announcement."""
    writer = files.open_writer(new())
    writer.write(b"half")
    writer._bytes.finish()
    return writer


def test_bytes_that_a_killed_process_left_are_swept(folder: tuple[FileStore, Path], redis: Redis) -> None:
    files, path = folder
    writer = die_while_writing(files)
    assert files.sweep() == 0, "it may still be writing"
    let_time_pass(redis, 601)
    assert files.sweep() == 1
    assert [entry for entry in path.rglob("*") if entry.is_file()] == []
    assert list(redis.scan_iter("*file*")) == []
    with pytest.raises(StoreUnavailable):
        files.publish(writer.id, new(), 4)


def test_a_process_killed_within_a_delete_leaves_no_bytes(folder: tuple[FileStore, Path], redis: Redis) -> None:
    files, path = folder
    stored = put(files)
    names = (keys.file(stored.id), keys.files_expiry(), keys.tenant_files("ada"))
    files._scripts.call(FileHideScript(*names, f"ada/{stored.id}", stored.id))
    with pytest.raises(NotFound):
        files.get(stored.id, "ada")
    assert files.sweep() == 1
    assert [entry for entry in path.rglob("*") if entry.is_file()] == []


def test_an_expired_file_is_out_of_sight_at_once_and_swept_later(files: FileStore, redis: Redis) -> None:
    stored, other = put(files, ttl_s=100), put(files, ttl_s=1000)
    let_time_pass(redis, 101, stored)
    with pytest.raises(NotFound, match="expired"):
        files.get(stored.id, "ada")
    assert files.list("ada", limit=10) == [other]
    assert files.sweep() == 1
    with pytest.raises(NotFound):
        files.open(stored)
    assert read(files, other) == b"body"


def let_time_pass(redis: Redis, seconds: float, *files: StoredFile) -> None:
    """Move the times that are written down into the past instead of waiting."""
    for member, due_ms in redis.zrange(keys.files_expiry(), 0, -1, withscores=True):
        redis.zadd(keys.files_expiry(), {member: due_ms - seconds * 1000})
    for file in files:
        redis.hincrby(keys.file(file.id), "expires_ms", -int(seconds * 1000))


def test_a_file_that_cannot_be_removed_does_not_hold_up_the_others(redis: Redis, settings: Settings) -> None:
    files, folder = FileStore(redis, settings), settings.data_dir / "files" / "ada"
    stuck, other = put(files), put(files)
    # A folder in its place: removing it as a file fails, whoever runs this.
    (folder / stuck.id).unlink()
    (folder / stuck.id).mkdir()
    let_time_pass(redis, 3601, stuck, other)
    assert files.sweep() == 2
    assert not (folder / other.id).exists()
    assert files.sweep() == 0
    (folder / stuck.id).rmdir()
    let_time_pass(redis, 601)
    assert files.sweep() == 1
    assert list(redis.scan_iter("*:file")) == []


def test_committing_twice_changes_nothing(files: FileStore) -> None:
    writer = files.open_writer(new())
    writer.write(b"body")
    stored = writer.commit()
    assert files.publish(writer.id, new(), 4) == stored


def test_a_plan_is_hidden(files: FileStore) -> None:
    stored = put(files, purpose="batch_plan")
    assert files.list("ada", limit=10) == []
    for attempt in (files.get, files.delete):
        with pytest.raises(NotFound):
            attempt(stored.id, "ada")
    assert files.get(stored.id, "ada", hidden=True) == stored
    visible = put(files)
    with pytest.raises(NotFound):
        files.get(visible.id, "ada", hidden=True)


def test_lists_are_paged_in_both_orders_and_filtered(files: FileStore) -> None:
    stored = [put(files, purpose="batch" if number % 3 else "batch_output") for number in range(230)]
    ids = [file.id for file in stored]
    assert [file.id for file in files.list("ada", limit=1000, order="asc")] == sorted(ids)
    assert [file.id for file in files.list("ada", limit=1000)] == sorted(ids, reverse=True)
    middle = sorted(ids, reverse=True)[110]
    assert [file.id for file in files.list("ada", limit=3, after=middle)] == sorted(ids, reverse=True)[111:114]
    assert [file.id for file in files.list("ada", limit=3, order="asc", after=middle)] == sorted(ids)[120:123]
    outputs = files.list("ada", limit=50, purpose="batch_output")
    assert len(outputs) == 50
    assert {file.purpose for file in outputs} == {"batch_output"}


@pytest.mark.parametrize("file_id", ["", "file-1", "../../etc/passwd", "file-" + "0" * 30 + "/", "file-" + "g" * 31])
def test_an_id_that_is_not_ours_is_not_found(files: FileStore, file_id: str) -> None:
    with pytest.raises(NotFound):
        files.get(file_id, "ada")


def test_every_key_has_an_expiry(files: FileStore, redis: Redis) -> None:
    files.open_writer(new())
    put(files, purpose="batch_plan")
    put(files)
    names = list(redis.scan_iter("*"))
    assert len(names) == 5
    assert all(redis.ttl(name) > 0 for name in names)


def test_a_file_system_that_is_not_installed_stops_the_start(redis: Redis, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="TWOLANE_FILES_URL"):
        FileStore(redis, settings.model_copy(update={"files_url": "nosuchthing://bucket"}))


def test_a_folder_that_cannot_be_written_says_so(redis: Redis, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    files = FileStore(redis, settings.model_copy(update={"files_url": str(tmp_path / "taken")}))
    with pytest.raises(StoreUnavailable):
        files.open_writer(new())


def test_hosts_that_keep_files_in_different_folders_are_found_and_lose_no_upload(
    redis: Redis, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (
        FileStore(redis, settings.model_copy(update={"data_dir": tmp_path / host})) for host in ("here", "there")
    )
    here.places.announce()
    kept = put(here)
    there.places.announce()
    assert len(here.places.differing()) == 1
    assert str(tmp_path / "here") in caplog.text
    # What another host has is not gone, and nothing is written that others would not find.
    for call in (partial(there.open, kept), partial(put, there)):
        with pytest.raises(StoreUnavailable, match="TWOLANE_FILES_URL"):
            call()
    redis.zremrangebyrank(keys.storage_places("TWOLANE_FILES_URL"), 0, -1)
    here.places.announce()
    assert here.places.differing() == []
    put(here)


def test_hosts_that_share_a_folder_under_different_names_are_one(
    redis: Redis, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("real", "link"):
        places = FileStore(redis, settings.model_copy(update={"files_url": str(tmp_path / name)})).places
        places.announce()
        assert places.differing() == []
