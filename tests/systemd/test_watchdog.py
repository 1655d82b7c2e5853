"""What stands still is restarted, and nothing is lost; what a restart would not mend is only said.

Each test lets one thing go wrong in a real relay under a real systemd (faulty.py), with mail in the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support.processes import wait_until
from tests.systemd.box import CONFIGURATION, Box

MakeBox = Callable[..., Box]
IMPATIENT = CONFIGURATION + 'retry_delays = ["1s"]\n'


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wedged_loop", "it gave the watchdog no sign of life"),
        ("dead_committer", "the thread that commits messages has ended"),
        ("stuck_committer", "messages have been waiting to be committed for"),
        ("stuck_delivery", "a transaction with isp should have ended"),
        ("idle_scheduler", "messages that are due are not tried although there is room"),
        ("late_timer", "what is due is"),
        ("closed_listener", "not served: :25, :587, :465"),
        ("memory_leak", "MB of memory are in use"),
    ],
)
def test_what_stands_still_is_restarted(box: MakeBox, fault: str, reason: str) -> None:
    machine = box(fault=fault, configuration=IMPATIENT)
    if fault == "late_timer":
        machine.open_smart_host("--reply", "RCPT=450")
    taken = set(machine.submit(5))
    pid = machine.provoke()
    match fault:
        case "stuck_delivery":
            machine.open_smart_host()
            machine.relay("queue", "retry", "--all")
        case "idle_scheduler":
            machine.open_smart_host()
            taken |= set(machine.submit(1))
        case "dead_committer" | "stuck_committer":
            taken |= set(machine.submit(1))  # the last that it writes
        case _:
            pass
    if fault == "stuck_committer":
        with machine.start("python3", "/usr/lib/pi-relay/submit.py", "1") as client:
            assert client.wait(40), "what never became durable was answered 250"
    machine.wait_for_restart(pid)
    last_restart = machine.ask("status")["last_restart"]
    assert reason in last_restart["reason"]
    assert reason in machine.relay("status")
    wait_until(lambda: nothing_is_lost(machine, taken), 20, "the mail that was taken")


def nothing_is_lost(machine: Box, taken: set[str]) -> bool:
    """In the queue still, or relayed."""
    gone = taken - machine.queue_ids()
    return all(any(event["event"] == "relayed" for event in machine.ask("trace", each)) for each in gone)


def test_where_each_thread_was_is_in_the_journal(box: MakeBox) -> None:
    machine = box(fault="wedged_loop")
    machine.wait_for_restart(machine.provoke())
    assert "in wedged_loop" in machine.journal()


def test_a_slow_disk_is_said_and_restarts_nobody(box: MakeBox) -> None:
    machine = box(fault="slow_disk")
    taken = machine.submit(1)
    pid = machine.provoke()
    with machine.start("python3", "/usr/lib/pi-relay/submit.py", "1") as client:
        wait_until(lambda: "has not answered for" in machine.status_line(), 20, "word of the disk")
        assert "the queue's disk is failing: it has not answered" in machine.relay("status")
        assert "451" in machine.run("python3", "/usr/lib/pi-relay/submit.py", "1", check=False)
        assert client.wait(30) == 0, "it was only slow"
    wait_until(lambda: "has not answered" not in machine.status_line(), 20, "word that the disk is back")
    assert machine.relay_pid == pid
    assert set(taken) < machine.queue_ids()


def test_a_read_only_disk_and_a_dead_smart_host_restart_nobody(box: MakeBox) -> None:
    machine = box(fault="read_only_disk")
    taken = set(machine.submit(1))
    wait_until(lambda: "no smart host can be used" in machine.status_line(), 20, "word of the smart host")
    pid = machine.provoke()
    for _ in range(2):
        assert "451" in machine.run("python3", "/usr/lib/pi-relay/submit.py", "1", check=False)
    time.sleep(6)  # three times what the watchdog would wait
    assert machine.relay_pid == pid
    assert "the queue's disk is failing" in machine.relay("status")
    assert machine.queue_ids() == taken


def test_killed_by_hand_and_by_a_power_cut(box: MakeBox) -> None:
    machine = box()
    assert machine.ask("status")["last_restart"] is None
    machine.run("systemctl", "restart", "pi-relay")
    assert machine.ask("status")["last_restart"] is None, "that was asked for"

    taken, pid = machine.submit(3), machine.relay_pid
    machine.run("systemctl", "kill", "--signal=SIGKILL", "--kill-whom=main", "pi-relay")
    machine.wait_for_restart(pid)
    assert "it was killed by signal KILL" in machine.ask("status")["last_restart"]["reason"]

    machine.cut_power()
    machine.boot()
    assert machine.queue_ids() == set(taken)
    assert "the machine went down without a stop" in machine.ask("status")["last_restart"]["reason"]

    machine.power_off()
    machine.boot()
    assert machine.queue_ids() == set(taken)
    assert "went down" in machine.ask("status")["last_restart"]["reason"], "the last unasked one"


def test_out_of_memory_is_told(box: MakeBox) -> None:
    machine = box(fault="memory_leak")
    if "memory" not in machine.run("cat", "/sys/fs/cgroup/cgroup.controllers"):
        pytest.skip("this host's kernel gives machines no memory limits")
    machine.run("systemctl", "set-property", "--runtime", "pi-relay", "MemoryMax=150M")
    machine.wait_for_restart(machine.provoke())
    assert "out of memory" in machine.ask("status")["last_restart"]["reason"]
