"""The two contestants, each as a whole system in processes of its own, handing everything to one smart host,
or each message to the MX host of its domain.

Both are as shipped but for limits that would stand in the way of a load: sizes for both; for pi-relay also
connections, in all and from one client (``tests.support.relay``). Postfix logs to the system's log socket,
whose reader is not charged to it; pi-relay writes its log itself, and is charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pi_relay.signing_keys import make_key
from tests.support.postfix import Postfix
from tests.support.relay import Relay


class System(Protocol):
    """A relay that can be started and stopped any number of times."""

    port: int

    @property
    def pid(self) -> int:
        """The process from which all the others descend."""

    def start(self) -> None:
        """Returns once it greets."""

    def stop(self) -> object:
        """Returns once it has ended."""

    def retry_all(self) -> object:
        """Try everything that waits, now."""


class StockPostfix(Postfix):
    def retry_all(self) -> None:
        self.flush()


class PiRelay(Relay):
    def start(self, timeout_seconds: float = 120) -> None:
        super().start(timeout_seconds)

    def retry_all(self) -> None:
        self.command("queue", "retry", "--all")


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    postfix: bool
    signs: bool = False
    judges: bool = False  # who may send as whom
    direct: bool = False  # to the MX hosts that the DNS server on 127.0.0.1 names
    connections_max: int = 400

    def system(self, directory: Path, smart_host_port: int, storage: Path | None = None) -> System:
        """One instance; ``storage``: where everything durable goes, if not to the machine's own disk."""
        if self.postfix:
            return StockPostfix(
                smart_host_port=smart_host_port,
                queue_directory=storage and storage / "queue",
                parameters={
                    "message_size_limit": "67108864",
                    "mailbox_size_limit": "0",
                    **({"relayhost": ""} if self.direct else {}),
                },
                dns_server="127.0.0.1" if self.direct else "",
            )
        return PiRelay(
            directory,
            smart_host_port=smart_host_port,
            state_directory=storage and storage / "state",
            connections_max=self.connections_max,
            submission_extra=_POLICY if self.judges else "",
            queue_extra=(_signing(directory) if self.signs else "") + (_DIRECT if self.direct else ""),
        )


# An office's rules, which smtp-source's mail passes, and its 20 devices.
_POLICY = """\
sender_domains = ["*.office.example", "office.example"]
default_sender = "relay@office.example"

[[devices]]
name = "copier"
address = "127.0.0.1"
senders = ["*@branch.example"]
messages_per_hour_max = 1000000
recipients_per_hour_max = 1000000

[[devices]]
name = "camera"
address = "192.168.1.24"
sender = "Camera <camera@office.example>"
""" + "".join(
    f"""
[[devices]]
name = "copier-{number}"
{key}
recipients = ["*@office.example", "*@branch.example"]
"""
    for number, key in enumerate(
        (
            *(f'address = "192.168.1.{last}"' for last in range(101, 117)),
            'address = "192.168.2.0/24"',
            'mac = "00:1b:a9:12:34:56"',
        )
    )
)


_DIRECT = """
[direct]
dns_servers = ["127.0.0.1"]
allow_private = true

[[routes]]
via = ["direct"]
"""


def _signing(directory: Path) -> str:
    """TOML that lets smtp-source's mail be signed, as `pi-relay dkim` would have it."""
    directory.mkdir(parents=True, exist_ok=True)
    key_file = directory / "relay1.pem"
    key_file.write_bytes(make_key("rsa"))
    key_file.chmod(0o600)
    return f'[[dkim]]\ndomain = "office.example"\nselector = "relay1"\nkey_file = "{key_file}"\n'


PI_RELAY = Contestant("pi-relay", postfix=False)
PI_RELAY_SIGNING = Contestant("pi-relay signing", postfix=False, signs=True)
PI_RELAY_JUDGING = Contestant("pi-relay judging", postfix=False, judges=True)
PI_RELAY_ATTACKED = Contestant("pi-relay attacked", postfix=False, judges=True, connections_max=100)
PI_RELAY_CROWDED = Contestant("pi-relay crowded", postfix=False, connections_max=1200)
POSTFIX = Contestant("Postfix", postfix=True)
POSTFIX_AGAIN = Contestant("Postfix again", postfix=True)
