"""The image as a file: what the boards' firmware looks for, and that the same build gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.image.test_tree import CACHE
from tests.support.flashed_box import Card

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]
BOARDS = {
    "3 B": "bcm2837-rpi-3-b.dtb",
    "3 B+": "bcm2837-rpi-3-b-plus.dtb",
    "Zero 2 W": "bcm2837-rpi-zero-2-w.dtb",
    "4": "bcm2711-rpi-4-b.dtb",
    "400": "bcm2711-rpi-400.dtb",
    "5": "bcm2712-rpi-5-b.dtb",
}
FIRMWARE = ("bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat")


def partition_table(image: Path) -> Any:
    result = subprocess.run(["sfdisk", "--json", image], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["partitiontable"]


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_partitions(image_of: Callable[[str], Path], arch: str) -> None:
    table = partition_table(image_of(arch))
    assert table["label"] == "dos"  # the Pi 3's ROM knows no GPT
    assert [each["type"] for each in table["partitions"]] == ["c", "83", "83"]
    starts = [each["start"] for each in table["partitions"]]
    assert [start % 8192 for start in starts] == [0, 0, 0]  # 4 MB: the erase blocks of a card
    # The data partition is the last, so that it can grow.
    assert starts == sorted(starts)


def test_what_the_boards_start_from(image_of: Callable[[str], Path]) -> None:
    image = image_of("arm64")
    card = Card(image)
    names = {name.lower() for name in card.names()}
    for name in (*FIRMWARE, *BOARDS.values(), "vmlinuz", "initrd.img", "config.txt", "cmdline.txt"):
        assert name in names, name
    settings = (card.read("config.txt") or b"").decode().splitlines()
    for line in ("arm_64bit=1", "kernel=vmlinuz", "initramfs initrd.img followkernel", "upstream_kernel=1"):
        assert line in settings
    command_line = (card.read("cmdline.txt") or b"").decode()
    assert f"root=PARTUUID={partition_table(image)['id'].removeprefix('0x')}-02 " in command_line
    assert " ro " in command_line
    assert "\n" not in command_line.rstrip("\n")
    kernel = card.read("vmlinuz") or b""
    assert kernel[0x38:0x3C] == b"ARM\x64" or kernel[:2] == b"\x1f\x8b"  # Image, or gzip of it


def test_the_same_root_gives_the_same_image(image_of: Callable[[str], Path]) -> None:
    image = image_of("amd64")
    for made in CACHE.glob("root-amd64-*.tar"):
        made.unlink()  # the first build makes it anew, the second takes it from the cache
    digests = []
    for _ in range(2):
        command = [REPOSITORY / "image/build", "--arch", "amd64", "--no-compress"]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        with image.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    assert digests[0] == digests[1]


def test_the_package_list(image_of: Callable[[str], Path]) -> None:
    listing = json.loads(image_of("arm64").with_suffix(".spdx.json").read_text())
    assert listing["spdxVersion"] == "SPDX-2.3"
    versions = {each["name"]: each["versionInfo"] for each in listing["packages"]}
    kernel = next(
        name for name in versions if name.startswith("linux-image-") and name != "linux-image-arm64"
    )
    assert int(versions[kernel].partition(".")[0]) >= 7, "6.12 knows neither network nor USB of the Pi 5"
    assert {"pi-relay", "openssh-server", "nftables", "raspi-firmware"} <= set(versions)
    absent = {"avahi-daemon", "rpcbind", "exim4-base", "postfix", "snapd", "cups"}
    assert not absent & set(versions)
