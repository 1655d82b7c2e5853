"""NSD, an authoritative DNS server, in the foreground on an address and port of its own.

    with DnsServer({"example": "@ MX 10 mail\nmail A 192.0.2.1"}) as server: ...

Zones are master files; the SOA and NS records are added. What lies in no zone is refused, and a CNAME that
leads out of its zone is left to whoever asks.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode

from tests.support.processes import free_port, wait_until

NSD = shutil.which("nsd", path="/usr/sbin:/usr/bin:/usr/local/sbin")

_CONFIGURATION = """
server:
  ip-address: {address}@{port}
  zonesdir: "{directory}"
  username: ""
  chroot: ""
  database: ""
  pidfile: ""
  logfile: "{directory}/log"
  xfrdfile: ""
  xfrdir: "{directory}"
  zonelistfile: "{directory}/zone.list"
  server-count: 1
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
  reuseport: no
remote-control:
  control-enable: no
"""


class DnsServer:
    """``zones``: {name: records}. ``ttl_seconds``: of records that name none, and of negative answers."""

    def __init__(
        self, zones: Mapping[str, str], *, address: str = "127.0.0.1", port: int = 0, ttl_seconds: int = 60
    ) -> None:
        self.address = address
        self.port = port or free_port()
        self._zones = dict(zones)
        self._ttl_seconds = ttl_seconds
        self._serial = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """As ``direct.dns_servers`` takes it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def __enter__(self) -> DnsServer:
        assert NSD is not None
        self._directory = Path(tempfile.mkdtemp(prefix="nsd-"))
        configuration = self._directory / "nsd.conf"
        text = _CONFIGURATION.format(address=self.address, port=self.port, directory=self._directory)
        for number, zone in enumerate(self._zones):
            text += f'zone:\n  name: "{zone}"\n  zonefile: "{number}.zone"\n'
        configuration.write_text(text)
        self._write_zones()
        self._process = subprocess.Popen([NSD, "-d", "-c", str(configuration)], stderr=subprocess.DEVNULL)
        wait_until(self._answers, 10, "NSD to answer")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        shutil.rmtree(self._directory, ignore_errors=True)

    def change(self, zones: Mapping[str, str]) -> None:
        """Other records in zones that it has; returns once they are served."""
        assert self._process is not None
        self._zones.update(zones)
        self._write_zones()
        self._process.send_signal(signal.SIGHUP)
        wait_until(self._answers, 10, "NSD to read its zones again")

    def _write_zones(self) -> None:
        self._serial += 1
        ttl = self._ttl_seconds
        for number, (zone, records) in enumerate(self._zones.items()):
            (self._directory / f"{number}.zone").write_text(
                f"$ORIGIN {zone.rstrip('.')}.\n$TTL {ttl}\n"
                f"@ SOA ns.invalid. admin.invalid. {self._serial} 3600 600 86400 {ttl}\n@ NS ns.invalid.\n"
                f"{records}\n"
            )

    def _answers(self) -> bool:
        """Every zone is served as it was written last."""
        return all(self._serves(zone) for zone in self._zones)

    def _serves(self, zone: str) -> bool:
        query = dns.message.make_query(f"{zone.rstrip('.')}.", "SOA")
        with contextlib.suppress(dns.exception.DNSException, OSError):
            response = dns.query.udp(query, self.address, timeout=0.2, port=self.port)
            if response.rcode() == dns.rcode.NOERROR and response.answer:
                return bool(next(iter(response.answer[0])).serial == self._serial)
        return False
