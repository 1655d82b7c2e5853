"""How much memory this process has, and may have.

Rules: read from proc(5) and the cgroup filesystem; where nothing can be read there is no limit.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def rss_bytes() -> int:
    """Resident memory (proc(5), statm's second figure, in pages)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_bytes() -> int:
    """MemoryMax= of the unit that we run in, 0 where there is none."""
    with suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        return int((_CGROUPS / group / "memory.max").read_text())
    return 0
