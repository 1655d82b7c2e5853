"""Hashes of passwords: made, verified, refused; generated passwords fit a printer's panel."""

from __future__ import annotations

from base64 import b64encode

import pytest

from pi_relay import passwords


def test_the_right_password_and_no_other() -> None:
    hashed = passwords.hash_password("gehéim")
    assert hashed.startswith("scrypt$16384$8$1$")
    assert passwords.verify("gehéim", hashed)
    assert not passwords.verify("geheim", hashed)
    assert not passwords.verify("", hashed)


def test_a_known_hash() -> None:
    # RFC 7914 section 12, third vector: P="pleaseletmein", S="SodiumChloride", N=16384, r=8, p=1.
    digest = bytes.fromhex(
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    text = f"scrypt$16384$8$1${b64encode(b'SodiumChloride').decode()}${b64encode(digest).decode()}"
    assert passwords.verify("pleaseletmein", text)


def test_the_salt_differs() -> None:
    assert passwords.hash_password("x") != passwords.hash_password("x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "geheim",
        "scrypt$16384$8$1$AAAA",
        "scrypt$x$8$1$AAAA$AAAA",
        "scrypt$16385$8$1$AAAAAAAA$" + "A" * 44,
        "scrypt$1073741824$8$1$AAAAAAAA$" + "A" * 44,
        "scrypt$16384$8$99$AAAAAAAA$" + "A" * 44,
        "scrypt$16384$8$1$$" + "A" * 44,
        "scrypt$16384$8$1$AAAA$!",
        "bcrypt$16384$8$1$AAAAAAAA$" + "A" * 44,
    ],
)
def test_what_is_no_hash_of_ours(text: str) -> None:
    assert not passwords.verify("x", text)
    with pytest.raises(passwords.HashInvalid):
        passwords.parse_hash(text)


def test_the_dummy_costs_as_much_and_fits_nobody() -> None:
    assert passwords.parse_hash(passwords.DUMMY_HASH)[:3] == (16384, 8, 1)
    assert not passwords.verify("", passwords.DUMMY_HASH)


def test_a_client_may_send_bytes_that_are_no_text() -> None:
    assert not passwords.verify("\udcff", passwords.hash_password("x"))


def test_generated_passwords_fit_a_panel() -> None:
    made = {passwords.generate() for _ in range(200)}
    assert len(made) == 200
    for password in made:
        assert len(password) <= 20 and password.isascii() and password.isprintable()
        assert not set(password) & set("0O1lIo")
