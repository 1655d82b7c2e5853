from pathlib import Path

import pytest

from tests.support.command_line import CommandLine


@pytest.fixture
def pi_relay(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)
