"""Where the state and the runtime folder are: by environment, as systemd sets it, else in their usual places.

Rules: os.environ only. Its own module, so that `pi-relay status` finds the socket without reading the
configuration's code.
"""

from __future__ import annotations

import os
from pathlib import Path


def state_directory() -> Path:
    """Certificates, counters, logs: $STATE_DIRECTORY (of several, the first), else /var/lib/pi-relay."""
    return _from_environment("STATE_DIRECTORY", "/var/lib/pi-relay")


def runtime_directory() -> Path:
    """The control socket: $RUNTIME_DIRECTORY (of several, the first), else /run/pi-relay."""
    return _from_environment("RUNTIME_DIRECTORY", "/run/pi-relay")


def _from_environment(name: str, default: str) -> Path:
    return Path(os.environ.get(name, "").partition(":")[0] or default)
