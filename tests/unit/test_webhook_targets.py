"""Where a webhook may lead."""

import ipaddress
import socket

import pytest

from app.webhooks.targets import ForbiddenTarget, Target, find_addresses, is_public, parse_target

FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "fc00::1", "fd12::1",
    "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]
BAD_URLS = [
    "", "hook", "//example.com/hook", "ftp://example.com/hook", "file:///etc/passwd", "gopher://example.com", "http://",
    "https:///hook", "http://user@example.com/", "http://user:pass@example.com/", "http://example.com:0/",
    "http://example.com:99999/", "http://example.com:x/", "http://exa mple.com/", "http://example.com/\r\nX: y",
    "http://example.com/\x00", "http://exämple.com/", "http://example.com/ü", "http://[::1", "http://a%2eb/",
    "http://example.com/" + "x" * 2048,
]  # fmt: skip
LOCAL_URLS = [
    "http://localhost/", "http://LOCALHOST:8000/", "http://localhost./", "http://a.localhost/", "http://printer.local/",
    "http://metadata.google.internal/", "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f.0.0.1/",
    "http://0177.0.0.1/", "http://0/", "http://[::1]:6379/", "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/latest",
    "http://[fe80::1]/", "https://10.1.2.3/",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_for_everybody_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("allow_private", [False, True])
def test_what_is_no_plain_url_is_refused(url: str, allow_private: bool) -> None:
    with pytest.raises(ForbiddenTarget):
        parse_target(url, allow_private=allow_private)


@pytest.mark.parametrize("url", LOCAL_URLS)
def test_a_url_that_plainly_leads_inside_is_refused_before_a_job_is_taken(url: str) -> None:
    with pytest.raises(ForbiddenTarget, match="not public"):
        parse_target(url, allow_private=False)
    assert parse_target(url, allow_private=True).port


def test_a_url_is_taken_apart() -> None:
    expected = Target(tls=True, host="hooks.example.com", port=8443, authority="hooks.example.com:8443", path="/a?b=c")
    assert parse_target("https://hooks.example.com:8443/a?b=c", allow_private=False) == expected
    assert parse_target("http://example.com", allow_private=False).path == "/"


def test_one_address_inside_spoils_the_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name server of a stranger answers cannot be asked of a real one here: the resolver alone is replaced."""

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, 1, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    target = Target(tls=False, host="two-faced.example.com", port=80, authority="two-faced.example.com", path="/")
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ForbiddenTarget, match="not public"):
        find_addresses(target, allow_private=False)
    assert find_addresses(target, allow_private=True) == ["8.8.8.8", "10.0.0.1"]
