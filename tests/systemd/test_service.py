"""The unit: start, reload, restart, stop, under a real systemd."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.support.processes import wait_until
from tests.systemd.box import CONFIGURATION, Box

MakeBox = Callable[..., Box]


@pytest.fixture(params=["trixie", "bookworm"])
def either(request: pytest.FixtureRequest, box: MakeBox) -> Box:
    """Debian 13 with systemd 257, and Debian 12 with 252."""
    return box(suite=request.param)


@pytest.fixture
def machine(box: MakeBox) -> Box:
    return box()


def test_it_takes_mail_as_its_own_user_on_ports_below_1024(either: Box) -> None:
    machine = either
    assert machine.is_ready()
    assert machine.status_line() == "All is well, 0 message(s) in the queue."
    assert machine.run("systemd-analyze", "verify", "--man=no", "pi-relay.service") == "", (
        "this systemd knows it all"
    )
    new = machine.open_smart_host()
    assert len(machine.submit(3)) == 3
    wait_until(lambda: len(list(new.iterdir())) == 3, 20, "three messages at the smart host")
    assert machine.run("stat", "-c", "%U", f"/proc/{machine.relay_pid}").strip() == "pi-relay"
    assert machine.run("stat", "-c", "%G %a", "/run/pi-relay/control.sock").strip() == "pi-relay 660"


def test_reload_waits_and_tells_of_a_bad_file(either: Box) -> None:
    machine = either
    pid = machine.relay_pid
    machine.configure(CONFIGURATION + '[[listeners]]\naddress = ":2525"\n')
    machine.run("systemctl", "reload", "pi-relay")
    assert machine.run(*GREETED, "2525")

    machine.configure("nonsense = 1\n")
    words = machine.run("systemctl", "reload", "pi-relay", check=False)
    assert "failed" in words
    assert machine.is_ready(), "the last good file serves on"
    assert "nonsense" in machine.status_line()
    assert machine.ask("status")["health"] != "ok"
    assert machine.run(*GREETED, "2525")

    machine.configure(CONFIGURATION)
    machine.run("systemctl", "reload", "pi-relay")
    assert "nonsense" not in machine.status_line()
    assert machine.run(*GREETED, "25")
    assert machine.relay_pid == pid


def test_sighup_reloads_too(machine: Box) -> None:
    machine.configure("nonsense = 1\n")
    machine.run("systemctl", "kill", "--signal=SIGHUP", "--kill-whom=main", "pi-relay")
    wait_until(lambda: "nonsense" in machine.status_line(), 20, "word of the bad file")
    wait_until(machine.is_ready, 20, "the end of the reload")


def test_the_last_good_file_serves_over_a_restart(machine: Box) -> None:
    machine.configure("nonsense = 1\n")
    machine.run("systemctl", "restart", "pi-relay")
    assert machine.run(*GREETED, "25")
    status = machine.ask("status")
    assert any("the last good one is in force" in reason for reason in status["reasons"])
    assert "nonsense" in machine.status_line()
    assert "nonsense" in machine.journal("--priority=err")
    assert machine.root.joinpath("var/lib/pi-relay/last-good.toml").stat().st_mode & 0o777 == 0o600

    machine.configure(CONFIGURATION)
    machine.run("systemctl", "reload", "pi-relay")
    assert not any("last good" in reason for reason in machine.ask("status")["reasons"])


def test_without_a_good_file_it_tries_again_for_ever(box: MakeBox) -> None:
    machine = box(configuration="nonsense = 1\n")
    assert not machine.is_ready()
    wait_until(lambda: int(machine.show("pi-relay", "NRestarts")) > 1, 30, "two more tries")
    machine.configure(CONFIGURATION)
    wait_until(machine.is_ready, 30, "the relay to come up")


def test_a_restart_refuses_nobody(either: Box) -> None:
    machine = either
    new = machine.open_smart_host()
    with machine.start("python3", "/usr/lib/pi-relay/submit.py", "--for", "8") as clients:
        for _ in range(3):
            pid = machine.relay_pid
            machine.run("systemctl", "restart", "pi-relay")
            machine.run("sleep", "0.5")
        pid = machine.relay_pid
        machine.run("systemctl", "kill", "--signal=SIGKILL", "--kill-whom=main", "pi-relay")
        machine.wait_for_restart(pid)
        words, _ = clients.communicate(timeout=60)
    said = words.decode()
    assert "refused" not in said
    taken = re.findall(r"queued as", said)
    assert len(taken) > 20
    wait_until(lambda: len(list(new.iterdir())) >= len(taken), 60, "all that was taken")


def test_a_listener_that_goes_is_closed_for_good(machine: Box) -> None:
    machine.configure(CONFIGURATION + '[[listeners]]\naddress = "127.0.0.1:2525"\n')
    machine.run("systemctl", "restart", "pi-relay")
    assert machine.run(*GREETED, "2525")
    assert machine.run(*GREETED, "25", check=False) == "refused"
    assert machine.show("pi-relay", "NFileDescriptorStore") == "1"


def test_a_listener_of_all_addresses_may_become_one_of_a_single_address(machine: Box) -> None:
    machine.configure(CONFIGURATION + '[[listeners]]\naddress = "127.0.0.1:25"\n')
    machine.run("systemctl", "restart", "pi-relay")
    assert machine.run(*GREETED, "25")
    assert machine.show("pi-relay", "NRestarts") == "0", "at the first try"
    machine.configure(CONFIGURATION)
    machine.run("systemctl", "restart", "pi-relay")
    assert machine.run(*GREETED, "587")
    assert machine.show("pi-relay", "NRestarts") == "0"


def test_an_idle_box_writes_nothing(box: MakeBox) -> None:
    machine = box(fault="wedged_loop")  # for its impatient watchdog alone: a turn every second
    pid = machine.relay_pid
    new = machine.open_smart_host()
    machine.submit(3)
    wait_until(lambda: len(list(new.iterdir())) == 3, 20, "the smart host")
    machine.run("sleep", "15")  # until what the messages left behind has been written
    before = written_bytes(machine, pid)
    machine.run("touch", "/run/now")
    machine.run("sleep", "12")  # a status is put together at each tenth turn
    assert written_bytes(machine, pid) == before
    assert machine.run("find", "/var/lib/pi-relay", "-newer", "/run/now") == ""


def written_bytes(machine: Box, pid: int) -> int:
    """By write(2) and its like, whether to a disk or not (proc(5))."""
    words = machine.run("cat", f"/proc/{pid}/io")
    return int(dict(line.split(": ") for line in words.splitlines())["wchar"])


def test_a_socket_unit_of_the_admins_is_taken_too(box: MakeBox) -> None:
    """Both families in one socket, as systemd makes it of a port alone."""
    machine = box()
    machine.run("systemctl", "stop", "pi-relay")
    assert machine.run(*GREETED, "25", check=False) == "refused", "stopped is stopped"
    unit = "[Socket]\nListenStream=25\nListenStream=2600\nBindIPv6Only=both\n"
    machine.put("/etc/systemd/system/pi-relay.socket", unit)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "pi-relay.socket")
    assert machine.run(*GREETED, "25").strip() == "220", "the first client starts the relay"
    assert machine.run(*GREETED, "587").strip() == "220"
    assert "systemd holds [::]:2600 open" in machine.journal("--priority=alert")


def test_a_secret_from_systemd(box: MakeBox) -> None:
    machine = box(
        configuration=CONFIGURATION.replace('tls = "off"', 'username = "u"\npassword_file = "isp.password"')
    )
    assert not machine.is_ready()
    machine.put("/root/isp.password", "secret\n", 0o600)
    machine.drop_in("LoadCredential=isp.password:/root/isp.password\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "pi-relay")
    assert machine.is_ready()


GREETED = (
    "python3",
    "-c",
    "import socket, sys\n"
    "try: print(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10).recv(3).decode())\n"
    "except ConnectionRefusedError: sys.exit(print('refused', end='') or 1)",
)
