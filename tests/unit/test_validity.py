"""When a certificate begins and ends, as OpenSSL sees it; and only ValueError from what is none."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay.validity import certificate_blocks, validity


def made(folder: Path, *options: str) -> str:
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x")
    files = ("-keyout", folder / "key.pem", "-out", folder / "certificate.pem")
    subprocess.run(["openssl", "req", "-x509", *kind, *files, *options], check=True, capture_output=True)
    return (folder / "certificate.pem").read_text()


def moment(folder: Path, which: str) -> float:
    arguments = ["openssl", "x509", "-in", folder / "certificate.pem", "-noout", which]
    text = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.partition("=")[2]
    return datetime.strptime(text.strip(), "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("days", ["1", "825", "20000"])  # the last one in the other form of time
def test_it_is_what_openssl_says(tmp_path: Path, days: str) -> None:
    pem = made(tmp_path, "-days", days)
    assert validity(pem) == (moment(tmp_path, "-startdate"), moment(tmp_path, "-enddate"))
    assert validity(f"names: x\n{(tmp_path / 'key.pem').read_text()}{pem}")[0] == validity(pem)[0]


def test_only_certificates_are_taken_from_a_pem_text(tmp_path: Path) -> None:
    pem = made(tmp_path)
    text = f"hello\n{(tmp_path / 'key.pem').read_text()}{pem}{pem}"
    assert certificate_blocks(text) == pem + pem
    assert certificate_blocks("hello") == ""


def test_every_cut_is_a_value_error(tmp_path: Path) -> None:
    der = ssl.PEM_cert_to_DER_cert(made(tmp_path))
    for end in range(0, 120):
        with pytest.raises(ValueError):
            validity(in_pem(der[:end]))


@given(st.binary(max_size=200))
def test_what_is_none(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        validity(in_pem(data))


def in_pem(der: bytes) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{b64encode(der).decode()}\n-----END CERTIFICATE-----\n"
