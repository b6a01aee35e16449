"""Another kernel over this machine's own files: a guest in QEMU, for what the kernel here does not have.

The guest sees the whole root file system of this machine, read-only over 9p, under an overlay in its RAM: every program
and this project are there, and nothing that it writes stays. It has a TPM in software, disks that are given to it, no
network. The processor is emulated, some ten times slower than this one: many test machines have a /dev/kvm that does
not work. TIDEGATE_GUEST_ACCEL=kvm uses it.

Touches: processes, a folder. The kernel is Debian's own, unpacked, not installed (``requirements/guest-kernel``).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.errors import ProgramFailed
from tidegate.base.program import find_program, run_program
from tidegate.testing.errors import GuestFailed

_NEEDED = ("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay")  # to see this machine's files
_USEFUL = ("loop", "dm-mod", "fuse")  # whose devices are there before somebody asks for the module
_MARK, _SERIAL = "tidegate.guest", "tidegate-guest-"
_MEMORY_MIB = 2048
_CORES = 2
_TAIL_BYTES = 6000

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /host /top /new
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
say() { $b echo "$1" > /dev/ttyS1; $b sync; $b poweroff -f; }
while read module; do $b insmod /modules/$module; done < /modules.list
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host || say "no files"
$b mount -t tmpfs -o size=70% top /top
$b mkdir /top/upper /top/work
$b mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work over /new || say "no overlay"
for place in proc sys dev; do $b mount --move /$place /new/$place; done
$b mkdir -p /new/dev/pts /new/dev/shm /new/lib/modules
$b ln -s $($b cat /kernel)/lib/modules/$($b uname -r) /new/lib/modules/
$b mount -t devpts devpts /new/dev/pts
for place in dev/shm run; do $b mount -t tmpfs tmpfs /new/$place; done
$b ip link set lo up
$b echo started > /new/dev/ttyS1
$b chroot /new /bin/sh < /command
status=$?
$b echo "status $status" > /new/dev/ttyS1
$b sync
$b poweroff -f
"""

# the kernel looks for this in its first root file system, which stays the initramfs
_MODPROBE = """#!/bin/busybox sh
exec /bin/busybox chroot /new /sbin/modprobe "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRun:
    """How a command in a guest ended, and what the guest's console showed.

    ``status`` is ``None`` if the guest went down before the command ended.
    """

    status: int | None
    console: str


def run_in_guest(
    kernel: Path, command: Sequence[str], *, disks: Sequence[Path] = (), timeout_s: float = 600.0
) -> GuestRun:
    """Boot a guest, run ``command`` in it as root, in this process's working folder, and return how it ended.

    ``kernel`` is the folder of an unpacked Debian kernel package. ``disks`` are files, which the guest finds by
    ``guest_disk`` and may change. Raises ``testing.guest.failed`` with the end of the console if it does not boot, or
    not end within ``timeout_s``; ``base.program.*``.
    """
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        _make_initramfs(kernel, folder, command)
        console, told = folder / "console", folder / "told"
        with _tpm(folder) as control:
            try:
                run_program(_plan_qemu(kernel, folder, control, disks), timeout_s=timeout_s)
            except ProgramFailed as error:
                raise GuestFailed(f"{error.message}; the guest showed: {_end_of(console)}") from error
        shown, said = _end_of(console), told.read_text().split()
    match said:
        case ["started"]:
            return GuestRun(status=None, console=shown)
        case ["started", "status", status] if status.isdecimal():
            return GuestRun(status=int(status), console=shown)
    raise GuestFailed(f"the guest did not get to the command ({' '.join(said) or 'silent'}): {shown}")


def guest_disk(number: int) -> Path:
    """Return, in a guest, the block device of the disk with this number (from 0); raise ``testing.guest.failed``.

    It goes by a serial number that no other disk has: what a test overwrites is never a disk of a real machine.
    """
    for found in Path("/sys/block").glob("vd*/serial"):
        if found.read_text().strip() == f"{_SERIAL}{number}":
            return Path("/dev") / found.parent.name
    raise GuestFailed(f"no disk {number} of a guest is here")


def is_guest() -> bool:
    """Return whether this is such a guest."""
    return _MARK in Path("/proc/cmdline").read_text().split()


def _end_of(console: Path) -> str:
    return console.read_bytes()[-_TAIL_BYTES:].decode(errors="replace") if console.exists() else "nothing"


def _plan_qemu(kernel: Path, folder: Path, control: Path, disks: Sequence[Path]) -> list[str]:
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    accelerator = os.environ.get("TIDEGATE_GUEST_ACCEL", "tcg")
    processor = ["-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    arguments = ["qemu-system-x86_64", "-machine", "q35", *processor, "-m", f"{_MEMORY_MIB}M", "-smp", str(_CORES)]
    arguments += ["-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"]
    arguments += ["-kernel", str(image), "-initrd", str(folder / "initramfs")]
    arguments += ["-append", f"console=ttyS0 panic=-1 quiet {_MARK}"]
    arguments += ["-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'told'}"]
    arguments += ["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"]
    arguments += ["-chardev", f"socket,id=tpm,path={control}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
    arguments += ["-device", "tpm-crb,tpmdev=tpm0"]
    for number, disk in enumerate(disks):
        arguments += ["-drive", f"file={disk},format=raw,if=none,id=disk{number},cache=writethrough"]
        arguments += ["-device", f"virtio-blk-pci,drive=disk{number},serial={_SERIAL}{number}"]
    return arguments


@contextmanager
def _tpm(folder: Path) -> Iterator[Path]:
    """Give the control socket of a new TPM in software, which QEMU connects to and ends."""
    state, control = folder / "tpm", folder / "tpm.sock"
    state.mkdir()
    command = [find_program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    command += ["--ctrl", f"type=unixio,path={control}", "--terminate"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10.0
        while not control.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise GuestFailed("swtpm did not start")
            time.sleep(0.01)
        yield control
    finally:
        process.kill()
        process.wait()


# ---- what the kernel starts ----------------------------------------------------------------------------------


def _make_initramfs(kernel: Path, folder: Path, command: Sequence[str]) -> None:
    root = folder / "root"
    for name in ("bin", "sbin", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(find_program("busybox"), root / "bin" / "busybox")
    for name, script in (("init", _INIT), ("sbin/modprobe", _MODPROBE)):
        (root / name).write_text(script)
        (root / name).chmod(0o755)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/root", "LC_ALL": "C.UTF-8"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines += [f"cd {shlex.quote(str(Path.cwd()))}", f"exec {shlex.join(command)}"]
    (root / "command").write_text("\n".join(lines) + "\n")
    found = _modules(kernel)
    for number, path in enumerate(found):
        shutil.copy(path, root / "modules" / f"{number:03}-{path.name}")
    (root / "kernel").write_text(str(kernel.absolute()))  # for modprobe, which the guest's kernel calls
    (root / "modules.list").write_text("".join(f"{number:03}-{path.name}\n" for number, path in enumerate(found)))
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))).encode()
    with (folder / "initramfs").open("wb") as target:
        subprocess.run(
            [find_program("cpio"), "--quiet", "-o", "-H", "newc"],
            cwd=root,
            input=names,
            stdout=target,
            check=True,
        )


def _modules(kernel: Path) -> list[Path]:
    """Return the kernel modules of the guest, each behind those that it needs."""
    (folder,) = (kernel / "lib" / "modules").iterdir()
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).name.partition(".")[0].replace("_", "-"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for other in needs[path]:
            add(other)
        if path not in order:
            order.append(path)

    for name in (*_NEEDED, *_USEFUL):
        found = by_name.get(name.replace("_", "-"))
        if found is not None:
            add(found)
        elif name in _NEEDED:
            raise GuestFailed(f"this kernel has no module {name}")
    return [folder / path for path in order]
