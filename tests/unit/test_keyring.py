"""The keys file: what it accepts, how it says no, how it is read again, and the command that makes keys."""

import hashlib
import logging
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from config.keyring import Keyring, KeyringError, KeyringFile, check_exposure, load_keyring
from config.new_key import new_key
from config.settings import Settings


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def write_keys(path: Path, *tenants: str, extra: str = "") -> Path:
    blocks = [
        f'[[keys]]\ntenant = "{tenant}"\nsha256 = "{digest_of("key-of-" + tenant)}"\n{extra}' for tenant in tenants
    ]
    path.write_text("\n".join(blocks), "utf-8")
    return path


def tenant_of(keyring: Keyring, secret: str) -> str | None:
    key = keyring.find(secret)
    return None if key is None else key.tenant


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "config.new_key", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_key_is_found_by_its_secret_alone(tmp_path: Path) -> None:
    keyring = load_keyring(write_keys(tmp_path / "keys.toml", "ada", "bob"))
    assert tenant_of(keyring, "key-of-bob") == "bob"
    assert tenant_of(keyring, "key-of-ada") == "ada"
    for stranger in ("", "key-of-eve", digest_of("key-of-ada"), "key-of-ad\udcff"):
        assert keyring.find(stranger) is None


def test_all_fields_are_read(tmp_path: Path) -> None:
    fields = (
        "requests_per_minute = 60\ntokens_per_minute = 1000\nmax_queued_items = 5000\n"
        'priority = "high"\nmodels = ["fake"]\nadmin = true\n'
    )
    key = load_keyring(write_keys(tmp_path / "keys.toml", "ada", extra=fields)).find("key-of-ada")
    assert key is not None
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_queued_items) == (60, 1000, 5000)
    assert (key.priority, key.models, key.admin) == ("high", ["fake"], True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("keys = [", "not TOML"),
        ("", "keys: Field required"),
        ("keys = []", "keys: List should have at least 1 item"),
        ('[[keys]]\ntenant = "ada"', r"keys[1].sha256: Field required"),
        ('[[keys]]\ntenant = "ada"\nsha256 = "tl-secret"', "keys[1].sha256"),
        ('[[keys]]\ntenant = "a:b"\nsha256 = "' + "0" * 64 + '"', "keys[1].tenant"),
        ('[[keys]]\ntenant = "ada"\nsha256 = "' + "0" * 64 + '"\nrequest_per_minute = 3', "keys[1].request_per_minute"),
        (
            '[[keys]]\ntenant = "ada"\nsha256 = "' + "0" * 64 + '"\nrequests_per_minute = 0',
            "keys[1].requests_per_minute",
        ),
        ('[[keys]]\ntenant = "ada"\nsha256 = "' + "0" * 64 + '"\nadmin = "yes"', "keys[1].admin"),
        (('[[keys]]\ntenant = "ada"\nsha256 = "' + "0" * 64 + '"\n') * 2, "stands there twice"),
    ],
)
def test_a_bad_file_is_refused_and_the_message_says_where(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(KeyringError) as caught:
        load_keyring(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
    assert "tl-secret" not in str(caught.value)


def test_a_missing_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="cannot be read"):
        load_keyring(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyringError, match="not TOML"):
        load_keyring(tmp_path / "bytes.toml")


def test_a_changed_file_counts_without_a_restart(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", "ada")
    file = KeyringFile(path, recheck_s=0)
    before = path.stat()
    write_keys(path, "bob")
    # Same size and same time of change: only the content differs.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tenant_of(file.current(), "key-of-bob") == "bob"
    assert file.current().find("key-of-ada") is None


def test_a_bad_change_keeps_the_old_keys_and_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_keys(tmp_path / "keys.toml", "ada")
    file = KeyringFile(path, recheck_s=0)
    with caplog.at_level(logging.INFO, "config.keyring"):
        path.write_text("keys = [", "utf-8")
        for _ in range(3):
            assert tenant_of(file.current(), "key-of-ada") == "ada"
        path.unlink()
        for _ in range(3):
            assert tenant_of(file.current(), "key-of-ada") == "ada"
        write_keys(path, "bob")
        assert tenant_of(file.current(), "key-of-bob") == "bob"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "INFO"]
    assert "not TOML" in caplog.messages[0]
    assert "cannot be read" in caplog.messages[1]


def test_a_file_that_stays_unusable_is_logged_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.keyring._REPEAT_S", 0.0)
    path = write_keys(tmp_path / "keys.toml", "ada")
    file = KeyringFile(path, recheck_s=0)
    assert not file.keeps_old_keys
    path.unlink()
    with caplog.at_level(logging.INFO, "config.keyring"):
        assert [file.keeps_old_keys for _ in range(3)] == [True] * 3
        write_keys(path, "ada")
        assert not file.keeps_old_keys
    assert [record.levelname for record in caplog.records if record.name == "config.keyring"] == ["ERROR"] * 3 + [
        "INFO"
    ]


@pytest.mark.parametrize("emptied", ["", "# nobody", "keys = []"], ids=["nothing", "a comment", "an empty list"])
def test_an_emptied_file_revokes_all_keys_and_a_missing_one_none(tmp_path: Path, emptied: str) -> None:
    path = write_keys(tmp_path / "keys.toml", "ada")
    file = KeyringFile(path, recheck_s=0)
    path.unlink()
    assert tenant_of(file.current(), "key-of-ada") == "ada"
    path.write_text(emptied, "utf-8")
    assert tenant_of(file.current(), "key-of-ada") is None


def test_the_file_is_not_read_for_every_request(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.toml", "ada")
    file = KeyringFile(path, recheck_s=3600)
    write_keys(path, "bob")
    assert tenant_of(file.current(), "key-of-ada") == "ada"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost", "LOCALHOST."])
def test_a_loopback_address_may_be_open(host: str) -> None:
    check_exposure(Settings(_env_file=None, host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "", "example.org", "localhost.example.org"])
def test_any_other_address_needs_keys(host: str, tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="TWOLANE_KEYS_FILE"):
        check_exposure(Settings(_env_file=None, host=host))
    keys = write_keys(tmp_path / "keys.toml", "ada")
    check_exposure(Settings(_env_file=None, host=host, keys_file=keys))


def test_a_bad_file_stops_the_start_even_on_loopback(tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match="cannot be read"):
        check_exposure(Settings(_env_file=None, keys_file=tmp_path / "none.toml"))


def test_two_new_keys_differ_and_fit_their_digest() -> None:
    (first, digest), (second, _) = new_key(), new_key()
    assert first != second
    assert digest == digest_of(first)


def test_the_command_prints_a_key_and_the_entry_for_it(tmp_path: Path) -> None:
    done = run_command("new", "--tenant", "ada", "--tokens-per-minute", "7", "--models", "fake,bge-m3", "--admin")
    assert done.returncode == 0
    secret, _, block = done.stdout.partition("\n")
    entry = tomllib.loads(block)["keys"][0]
    assert entry == {
        "tenant": "ada",
        "sha256": digest_of(secret),
        "tokens_per_minute": 7,
        "models": ["fake", "bge-m3"],
        "admin": True,
    }


def test_the_command_appends_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secrets = [run_command("new", "--tenant", name, "--file", str(path)).stdout.strip() for name in ("ada", "bob")]
    keyring = load_keyring(path)
    assert [tenant_of(keyring, secret) for secret in secrets] == ["ada", "bob"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(secret in path.read_text("utf-8") for secret in secrets)


def test_the_command_leaves_a_bad_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("keys = [", "utf-8")
    done = run_command("new", "--tenant", "ada", "--file", str(path))
    assert done.returncode == 2
    assert "not TOML" in done.stderr
    assert done.stdout == ""
    assert path.read_text("utf-8") == "keys = ["


def test_the_command_says_what_is_wrong_with_a_tenant() -> None:
    done = run_command("new", "--tenant", "a b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "tenant" in done.stderr
