"""What ``legacy = true`` lets a device do, and that its use is said once a day.

Rules: a use is a device and a kind: a TLS version before 1.2, a cipher that nobody else is offered, or AUTH
in clear. It must not know sockets.
"""

from __future__ import annotations

import ssl

from pi_relay import maillog

DAY_SECONDS = 86_400
AUTH_IN_CLEAR = "AUTH in clear"
_OLD_VERSIONS = frozenset({"SSLv3", "TLSv1", "TLSv1.1"})


class Uses:
    def __init__(self) -> None:
        self._said: dict[tuple[str, str], int] = {}  # the day on which a use was last said

    def note(self, device: str, what: str, at: float) -> None:
        """``at``: seconds since the epoch."""
        day = int(at // DAY_SECONDS)
        if self._said.get((device, what)) != day:
            self._said[device, what] = day
            maillog.legacy(device=device, what=what)


def old_in(inside: ssl.SSLObject, usual: ssl.SSLContext | None) -> str:
    """What of this TLS session a usual device would have been refused, "" where nothing.

    ``usual``: the context of everybody else.
    """
    version = inside.version() or ""
    if version in _OLD_VERSIONS:
        return version
    cipher = (inside.cipher() or ("",))[0]
    offered = {each["name"] for each in usual.get_ciphers()} if usual is not None else {cipher}
    return "" if cipher in offered else cipher
