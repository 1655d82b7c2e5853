"""A box that cannot come up whole waits for no keyboard: the reason stays on the card, it starts again."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.flashed_box import FlashedBox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# The line of /var in /etc/fstab, changed; and what is said of it.
BROKEN = {
    "no such file system": ((r" /var  *ext4", " /var ext5"), "var.mount"),
    # Nothing fails: /var is an empty folder of the read-only root.
    "no line at all": ((r"\n[^\n]* /var .*", ""), "pi-relay-box"),
}
# As on the card, but for the patience.
QUICKER = {
    "/usr/lib/pi-relay-box/trouble": ("sleep 120", "sleep 5"),
    "/etc/systemd/system/pi-relay-box-half-up.timer": ("OnBootSec=5min", "OnBootSec=90s"),
}


def change(box: FlashedBox, folder: Path, path: str, pattern: str, replacement: str) -> None:
    """A file of the root on the card that lies in a PC."""
    table = subprocess.run(["sfdisk", "--json", box.image], capture_output=True, text=True, check=True).stdout
    start = json.loads(table)["partitiontable"]["partitions"][1]["start"]

    def debugfs(*command: str) -> str:
        card = f"{box.image}?offset={start * 512}"
        done = subprocess.run(
            ["debugfs", "-w", "-R", " ".join(command), card], capture_output=True, text=True, check=True
        )
        return done.stdout

    before = debugfs("cat", path)
    after = re.sub(pattern, replacement, before)
    assert after != before
    copy = folder / Path(path).name
    copy.write_text(after)
    copy.chmod(0o755 if before.startswith("#!") else 0o644)
    debugfs("rm", path)
    debugfs("write", str(copy), path)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_fstab(image_of: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    line, reason = BROKEN[how]
    with FlashedBox(image_of("amd64"), tmp_path) as box:
        for path, words in {"/etc/fstab": line, **QUICKER}.items():
            change(box, tmp_path, path, *words)
        box.start(wait=False)
        box.wait_for_end(900)  # it restarts, which ends QEMU
        trouble = (box.read("TROUBLE.txt") or b"").decode()
        assert "could not start" in trouble
        assert reason in trouble
