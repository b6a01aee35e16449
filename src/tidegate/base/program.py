"""System programs: found, named with their Debian package when missing, run without a shell.

Touches: processes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from tidegate.base.errors import ProgramFailed, ProgramMissing

# program -> Debian 12 package
PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "mksquashfs": "squashfs-tools",
    "veritysetup": "cryptsetup-bin",
    "busybox": "busybox-static",
    "iptables-nft-save": "iptables",
    "iptables-nft-restore": "iptables",
    "ip6tables-nft-save": "iptables",
    "ip6tables-nft-restore": "iptables",
    "nmap": "nmap",
    "hping3": "hping3",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "umount": "mount",
    "losetup": "mount",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "dropbear": "dropbear-bin",
    "dbclient": "dropbear-bin",
    "dropbearkey": "dropbear-bin",
    "ndpiReader": "libndpi-bin",
    "tshark": "tshark",
    "openssl": "openssl",
    "softhsm2-util": "softhsm2",
    "pkcs11-tool": "opensc",
    "swtpm": "swtpm",
    "tpm2_sign": "tpm2-tools",
    "certtool": "gnutls-bin",
    "curl": "curl",
}
_ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(name: str) -> str:
    """Return the absolute path of ``name`` or raise ``base.program.missing`` with the package that has it."""
    path = shutil.which(name) or shutil.which(name, path=_ADMIN_PATH)
    if path is None:
        package = PACKAGES.get(name, name)
        raise ProgramMissing(
            f"the program {name!r} is not installed (Debian package {package})", program=name, package=package
        )
    return path


def run_program(
    arguments: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 60.0, check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output; ``arguments`` must hold no secret (others can read argv).

    Raises ``base.program.missing``; ``base.program.failed`` with the last lines of its message when it exits
    non-zero (unless ``check`` is off) or does not end within ``timeout_s``.
    """
    command = [find_program(arguments[0]), *arguments[1:]]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{arguments[0]} did not end within {timeout_s:g} s", program=arguments[0]) from error
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-400:]
        raise ProgramFailed(
            f"{' '.join(arguments[:4])} failed with status {done.returncode}: {said}",
            program=arguments[0],
            status=done.returncode,
        )
    return done
