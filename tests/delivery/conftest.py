"""Certificates for the whole folder: made once, trusted by the environment as an admin would."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.support.certificates import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(authority.certificate))
    return authority


@pytest.fixture
def tls(trusted: Authority) -> ssl.SSLContext:
    """What a server needs to be verified as localhost, 127.0.0.1 or ::1."""
    return trusted.leaf().server_context()


@pytest.fixture
def trusted_by_hash(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Trusted as the system's own CAs are: a folder of links by hash, and no bundle."""
    import subprocess

    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.certificate.read_bytes())
    subprocess.run(["openssl", "rehash", str(folder)], check=True)
    paths = ssl.get_default_verify_paths()
    monkeypatch.delenv(paths.openssl_cafile_env, raising=False)
    monkeypatch.setenv(paths.openssl_capath_env, str(folder))
    return authority
