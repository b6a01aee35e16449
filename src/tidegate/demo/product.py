"""The demo's product: a small busybox system with one application that answers over HTTP and says its version.

Touches: a work folder, ``mksquashfs``.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.durable import translate_os_errors
from tidegate.base.program import find_program, run_program
from tidegate.boot.stage2_build import build_stage2
from tidegate.crypto.signing import Signer
from tidegate.crypto.trust import TrustPolicy
from tidegate.image.build import ImageIdentity, PayloadSource, write_bundle
from tidegate.image.manifest import Manifest, PayloadKind

HARDWARE = "gateway-r1"
SERVICE_PORT = 8080
_FOLDERS = ("apps", "bin", "data", "dev", "etc", "proc", "run", "sbin", "sys", "tmp", "usr")
_INIT = """#!/bin/busybox sh
# Starts what the second stage listed, after it verified it; each service again when it ends.
while read -r command; do
    (while true; do sh -c "exec $command"; sleep 1; done) &
done < /run/services
wait
"""
_SERVICE = f"""#!/bin/busybox sh
# Answers http://DEVICE:{SERVICE_PORT}/version without any right but to listen.
exec /bin/busybox httpd -f -p 0.0.0.0:{SERVICE_PORT} -u 65534:65534 -h /apps/service/www
"""
_BROKEN_SERVICE = """#!/bin/busybox sh
echo 'service: configuration missing' >&2
exit 1
"""
# Stands for the libraries and data of a real product: makes the image large enough to be interrupted while written.
_BALLAST_BYTES = 6 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release of the product to be built."""

    version: str
    security_version: int
    broken: bool = False
    product: str = "Demo gateway"


def build_release(
    folder: Path, release: Release, *, trust: TrustPolicy, signers: Sequence[Signer], name: str | None = None
) -> tuple[Path, Manifest]:
    """Build and sign one release in ``folder``; return the bundle and its manifest."""
    work = folder / f"build-{release.version}"
    rootfs = _squash(_lay_out_rootfs(work / "rootfs", release), work / "rootfs.sqfs")
    service = _squash(_lay_out_service(work / "service", release), work / "service.sqfs")
    bundle = folder / (name or f"gateway-{release.version}.tgb")
    identity = ImageIdentity(
        vendor="Example Maker",
        product=release.product,
        hardware=(HARDWARE,),
        version=release.version,
        security_version=release.security_version,
    )
    with (
        translate_os_errors(bundle),
        rootfs.open("rb") as system,
        service.open("rb") as application,
        bundle.open("wb") as out,
    ):
        manifest = write_bundle(
            identity,
            [
                PayloadSource(name="stage2", kind=PayloadKind.STAGE2, stream=io.BytesIO(build_stage2(trust))),
                PayloadSource(name="rootfs", kind=PayloadKind.ROOTFS, stream=system),
                PayloadSource(
                    name="service",
                    kind=PayloadKind.APPLICATION,
                    stream=application,
                    start=("/apps/service/start",),
                ),
            ],
            signers,
            out,
        )
    shutil.rmtree(work)
    return bundle, manifest


def _lay_out_rootfs(root: Path, release: Release) -> Path:
    with translate_os_errors(root):
        for name in _FOLDERS:
            (root / name).mkdir(parents=True)
        shutil.copy2(find_program("busybox"), root / "bin" / "busybox")
        (root / "bin" / "sh").symlink_to("busybox")
        (root / "bin" / "sleep").symlink_to("busybox")
        (root / "etc" / "os-release").write_text(f'NAME="{release.product}"\nVERSION_ID={release.version}\n')
        (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        (root / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
        _write_program(root / "sbin" / "init", _INIT)
        ballast = release.version.encode().ljust(64, b".")
        (root / "usr" / "ballast").write_bytes(_incompressible(ballast, _BALLAST_BYTES))
    return root


def _lay_out_service(root: Path, release: Release) -> Path:
    with translate_os_errors(root):
        (root / "www").mkdir(parents=True)
        (root / "www" / "version").write_text(f"{release.version}\n")
        _write_program(root / "start", _BROKEN_SERVICE if release.broken else _SERVICE)
    return root


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _incompressible(seed: bytes, size: int) -> bytes:
    """Return bytes that look random and are the same for the same seed."""
    return hashlib.shake_128(seed).digest(size)


def _squash(folder: Path, target: Path) -> Path:
    """Pack ``folder`` reproducibly: fixed times, root-owned, one order."""
    options = ["-noappend", "-all-root", "-no-progress", "-quiet", "-comp", "gzip", "-mkfs-time", "0", "-all-time", "0"]
    run_program(["mksquashfs", str(folder), str(target), *options, "-processors", "1"])
    return target
