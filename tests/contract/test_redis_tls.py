"""TLS to Redis: a server that cannot prove its name gets no password, from neither of our two client libraries."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.celery import make_app
from tasks.connections import connect


def write_certificate(folder: Path, address: str) -> Path:
    """A certificate for one address, which is its own authority; its key is in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{address}.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class TlsFront:
    """Speaks TLS in front of a server, and keeps what clients said."""

    def __init__(self, certificate: Path, server: EmbeddedServer) -> None:
        self.heard = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._behind = int(server.url.rpartition(":")[2].partition("/")[0])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
                client = self._context.wrap_socket(plain, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", self._behind))
            threading.Thread(target=self._pass, args=(client, behind, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(behind, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, heard: bool) -> None:
        try:
            while block := source.recv(65536):
                self.heard += block if heard else b""
                target.sendall(block)
        except OSError:
            pass
        source.close()
        target.close()


@pytest.fixture
def front(server: EmbeddedServer, tmp_path: Path) -> Iterator[TlsFront]:
    front = TlsFront(write_certificate(tmp_path, "127.0.0.1"), server)
    yield front
    front.close()


def ask_redis_py(settings: Settings) -> None:
    with connect(settings.redis_url, name="test") as redis:
        redis.ping()


def ask_celery(settings: Settings) -> None:
    with make_app(settings).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        connection.default_channel.client.ping()


ASKS = pytest.mark.parametrize("ask", [ask_redis_py, ask_celery])


@ASKS
def test_a_server_that_cannot_prove_its_name_hears_no_password(
    front: TlsFront, tmp_path: Path, ask: Callable[[Settings], None]
) -> None:
    other = write_certificate(tmp_path, "127.0.0.9")
    for options in ("", f"?ssl_ca_certs={other}"):
        url = f"rediss://:hunter2@127.0.0.1:{front.port}/0{options}"
        with pytest.raises(Exception, match=r"(?i)certificate|ssl"):
            ask(Settings(_env_file=None, redis_url=url))
    assert front.heard == b""


@ASKS
def test_a_server_whose_authority_is_known_is_used(
    front: TlsFront, redis_url: str, tmp_path: Path, ask: Callable[[Settings], None]
) -> None:
    ask(Settings(_env_file=None, redis_url=f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={tmp_path}/127.0.0.1.pem"))
    assert b"PING" in front.heard
    with Redis.from_url(redis_url) as plain:
        assert plain.ping()
