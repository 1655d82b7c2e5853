"""The image itself, built once for all tests that start it (image/build keeps the root in a cache)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import flashed_box

REPOSITORY = Path(__file__).parents[2]
ARM64_WANTED = "PI_RELAY_TEST_ARM64"
BUILD_SECONDS = {"amd64": 1200, "arm64": 2700}


@pytest.fixture(scope="session")
def image_of() -> Callable[[str], Path]:
    """A function: architecture -> its image. Skips where it cannot be built or started."""
    built: dict[str, Path | str] = {}

    def build(arch: str) -> Path:
        if arch not in built:
            built[arch] = _build(arch)
        found = built[arch]
        if isinstance(found, str):
            pytest.skip(found)
        return found

    return build


def _build(arch: str) -> Path | str:
    """The image, or why there is none."""
    if os.geteuid() != 0:
        return "building an image needs root"
    if arch == "arm64" and not os.environ.get(ARM64_WANTED):
        return f"emulating arm64 takes up to half an hour; {ARM64_WANTED}=yes has it done"
    setup = subprocess.run(
        [REPOSITORY / "scripts/setup", "--image"], capture_output=True, text=True, timeout=900, check=False
    )
    if setup.returncode:
        return f"what an image needs cannot be installed: {setup.stderr[-500:]}"
    if reason := flashed_box.why_not(arch):
        return reason
    command = [REPOSITORY / "image/build", "--arch", arch, "--no-compress"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_SECONDS[arch], check=False
        )
    except subprocess.TimeoutExpired:
        return f"the image of {arch} was not built within {BUILD_SECONDS[arch]} s"
    # No mirror is no fault of ours; anything else is.
    if result.returncode and "Temporary failure" in result.stderr:
        return "Debian's mirror cannot be reached"
    assert result.returncode == 0, result.stderr[-3000:]
    return REPOSITORY / result.stderr.rpartition("done: ")[2].strip()
