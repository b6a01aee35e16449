"""Verify an update bundle as a device would and show what is in it.

Run: python examples/verify-bundle.py BUNDLE ANCHORS HARDWARE   (without arguments: on a bundle made for the occasion)
"""

import sys
import tempfile
from pathlib import Path

from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.errors import Rejected
from tidegate.crypto.trust import parse_trust
from tidegate.image.verify import AcceptanceRule, read_payload, verify_image


def verify(bundle: Path, anchors: Path, hardware: str) -> None:
    """Show the manifest and the first bytes of each payload, every block verified."""
    rule = AcceptanceRule(trust=parse_trust(anchors.read_bytes()), hardware=hardware, security_floor=0)
    with FileBlockDevice(bundle) as source:
        try:
            image = verify_image(source, rule, exact_size=True)
        except Rejected as error:
            sys.exit(f"refused: {error.message} [{error.code}]")
        print(f"{image.manifest.product} {image.manifest.version} for {', '.join(image.manifest.hardware)}")
        for payload in image.manifest.payloads:
            _, first = next(read_payload(source, image.extent(payload.name)))
            print(f"{payload.kind.value:12} {payload.name:12} {payload.size:>9} bytes, begins {first[:8].hex()}")


if len(sys.argv) == 4:
    verify(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
else:
    from tidegate.testing.maker import TEST_HARDWARE, TestMaker, TestRelease

    with tempfile.TemporaryDirectory() as folder:
        maker, base = TestMaker(Path(folder) / "maker"), Path(folder)
        (base / "bundle").write_bytes(maker.build(TestRelease(version="1.0.0")))
        (base / "anchors").write_bytes(maker.trust.encode())
        verify(base / "bundle", base / "anchors", TEST_HARDWARE)
