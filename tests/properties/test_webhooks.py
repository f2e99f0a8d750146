"""Signatures and secrets of webhooks, and the guard against addresses inside, for any input."""

import base64
import hashlib
import hmac
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.webhooks.signing import check_secret, make_secret, sign
from app.webhooks.targets import ForbiddenTarget, is_public, parse_target

IPV4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)


@given(st.binary(min_size=24, max_size=64), st.text("abc_123", min_size=1), st.integers(0, 2**40), st.binary())
def test_a_receiver_who_has_the_secret_can_check_every_signature(key: bytes, name: str, at_s: int, body: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    version, _, signature = sign(check_secret(secret), name, at_s, body).partition(",")
    expected = hmac.new(key, b"%s.%d.%s" % (name.encode(), at_s, body), hashlib.sha256).digest()
    assert (version, base64.b64decode(signature)) == ("v1", expected)
    assert sign(secret, name, at_s + 1, body) != sign(secret, name, at_s, body)


def test_the_signature_of_the_published_example_is_made() -> None:
    secret, name = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert sign(secret, name, 1614265330, b'{"test": 2432232314}') == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_new_secret_is_one_and_never_the_same() -> None:
    assert check_secret(make_secret()) != check_secret(make_secret())


@given(st.one_of(st.text(), st.binary(max_size=23).map(lambda key: "whsec_" + base64.b64encode(key).decode())))
def test_what_is_no_secret_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        check_secret(text)


@given(IPV4)
def test_an_ipv4_address_hidden_in_an_ipv6_one_is_never_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    hidden = [(0xFFFF << 32) | number, number, (0x64FF9B << 96) | number, (0x2002 << 112) | (number << 80)]
    assert not any(is_public(ipaddress.IPv6Address(value)) for value in hidden)


@given(IPV4)
def test_no_way_of_writing_an_address_inside_gets_past_the_guard(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [str(address), str(number), hex(number), f"[::ffff:{address}]", f"[{ipaddress.IPv6Address(number)}]"]
    for form in forms if not is_public(address) else forms[3:]:
        with pytest.raises(ForbiddenTarget):
            parse_target(f"http://{form}/", allow_private=False)


@given(st.text())
def test_any_text_is_a_target_or_refused(url: str) -> None:
    try:
        target = parse_target(url, allow_private=False)
    except ForbiddenTarget:
        return
    assert target.path.startswith("/")
    assert target.path.isascii()
    assert not any(sign in target.path for sign in "\r\n ")
