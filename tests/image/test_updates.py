"""Updates of the box that are cut off, or fail: it comes back with its relay, and finishes them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image.test_started_box import TOML, subjects, submit
from tests.support.flashed_box import FlashedBox
from tests.support.processes import wait_until
from tests.support.sinks import SmtpSink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parents[2]
# The first time it never ends, and is there for the power cut; the second time it goes on.
STANDS_STILL_ONCE = "if [ ! -e /var/at-{0} ]; then touch /var/at-{0}; sync; sleep 3600; fi"
# The power is cut after the first and the third file that takes its place on the boot partition.
MV_THAT_CUTS = """\
#!/bin/sh
/usr/bin/mv "$@" || exit
case $2 in
  /boot/firmware/*)
    echo "$(uname -r) $2" >>/var/moved
    sync
    case $(wc -l </var/moved) in 1 | 3) echo b >/proc/sysrq-trigger; sleep 60 ;; esac
    ;;
esac
"""


def repacked(folder: Path, version: str, script: str, line: str) -> Path:
    """Our own package under another version, with a line more in one of its maintainer scripts."""
    (original,) = (REPOSITORY / "dist").glob("pi-relay_*_all.deb")
    tree, made = folder / version, folder / f"pi-relay_{version}_all.deb"
    subprocess.run(["dpkg-deb", "-R", original, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text(
        "".join(f"Version: {version}\n" if each.startswith("Version:") else f"{each}\n" for each in lines)
    )
    place = tree / "DEBIAN" / script
    shell, _, rest = (place.read_text() if place.exists() else "#!/bin/sh\n").partition("\n")
    place.write_text(f"{shell}\n{line}\n{rest}")
    place.chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, made], check=True, capture_output=True)
    return made


NEW = "/tmp/new.deb"  # noqa: S108  # in the box, whose /tmp forgets it at the cut


def drop_package(box: FlashedBox, deb: Path) -> None:
    box.run(f"cat >{NEW}", stdin=deb.read_bytes())


def begin_install(box: FlashedBox, package: str) -> None:
    """It goes on after we have hung up."""
    box.run(f"sudo systemd-run --quiet --unit=installs apt-get install -y {package}")


def wait_for_finish(box: FlashedBox) -> None:
    box.run(
        "sudo systemctl start pi-relay-box-finish-update", timeout_seconds=1200
    )  # waits for one under way


def assert_whole(box: FlashedBox) -> None:
    assert box.run("sudo dpkg --audit") == ""
    assert "No such file" in box.run("ls /usr/lib/pi-relay-box/update-under-way", check=False)
    assert "ro," in box.run("findmnt -no OPTIONS /")
    assert "ro," in box.run("findmnt -no OPTIONS /boot/firmware")
    assert box.run("systemctl --failed --plain --no-legend").strip() == ""


def installed(box: FlashedBox, package: str) -> str:
    return box.run(f"dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' {package}", check=False)


def test_an_update_of_the_relay_that_is_cut_off_or_fails(
    image_of: Callable[[str], Path], tmp_path: Path
) -> None:
    dump = tmp_path / "mail"

    def assert_relays(subject: str) -> None:
        submit(box.mail_port, subject)
        wait_until(lambda: subject in subjects(dump), 60, f"the message {subject}")

    with FlashedBox(image_of("amd64"), tmp_path) as box, SmtpSink(tmp_path, dump=dump) as sink:
        box.drop("pi-relay.toml", TOML.format(port=sink.port))
        box.drop("authorized_keys", box.public_key)
        box.start()
        for version, script in (("99.0", "preinst"), ("99.1", "postinst")):
            drop_package(box, repacked(tmp_path, version, script, STANDS_STILL_ONCE.format(version)))
            begin_install(box, NEW)
            wait_until(lambda: "sleep 3600" in box.run("ps ax"), 300, "the update to stand still")
            box.cut_power()

            box.start()
            assert_relays(f"after the cut in {script}")
            wait_for_finish(box)
            assert installed(box, "pi-relay") == f"installed {version}"
            assert_whole(box)

        drop_package(box, repacked(tmp_path, "99.2", "postinst", "exit 1"))
        with pytest.raises(RuntimeError, match="exit 100"):
            box.run(f"sudo apt-get install -y {NEW}")
        assert "ro," in box.run("findmnt -no OPTIONS /")
        assert_relays("after the failure")
        box.power_off()
        box.start()
        assert_relays("after the restart")


def test_a_new_kernel_starts_whenever_the_power_is_cut(
    image_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with FlashedBox(image_of("amd64"), tmp_path) as box:
        box.drop("pi-relay.toml", TOML.format(port=1))
        box.drop("authorized_keys", box.public_key)
        box.start()
        before = box.run("uname -r").strip()
        said = box.run("sudo apt-get update -qq", check=False, timeout_seconds=600)
        if "Failed to fetch" in said or "Could not" in said:
            pytest.skip(f"the box reaches no mirror of Debian: {said[-300:]}")
        box.run(
            "sudo mount -o remount,rw / && sudo tee /usr/local/bin/mv >/dev/null && "
            "sudo chmod 755 /usr/local/bin/mv && "
            "sudo sed -i '2i PATH=/usr/local/bin:$PATH' /usr/lib/pi-relay-box/boot-files && sync",
            stdin=MV_THAT_CUTS.encode(),
        )
        # A kernel of the same version in another build: it has a release, and modules, of its own.
        begin_install(box, "linux-image-cloud-amd64")
        box.wait_for_end(1200)

        # The old kernel, with the initial RAM disk of both: it goes on, and the power is cut again.
        box.start(wait=False)
        box.wait_for_end(1200)

        box.start()  # the new kernel, with the same initial RAM disk
        after = box.run("uname -r").strip()
        assert "cloud" in after
        wait_for_finish(box)
        assert installed(box, "linux-image-cloud-amd64").startswith("installed")
        assert_whole(box)
        box.power_off()

        box.start()  # both are new
        assert box.run("uname -r").strip() == after
        assert (
            box.run("sudo cmp /boot/initrd.img-$(uname -r) /boot/firmware/initrd.img && echo same").strip()
            == "same"
        )
        done_by = [line.split()[0] for line in box.run("cat /var/moved").splitlines()]
        assert done_by == [before] * 3 + [after] * 3
