"""The maker's side of the second stage: a reproducible zip archive of the code it needs and its trust anchors.

Touches: the source files of this installation.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import tidegate
from tidegate.boot.stage2 import ANCHORS
from tidegate.crypto.trust import TrustPolicy

_ROOMS = ("base", "crypto", "image", "boot")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip archive can hold: the same input gives the same bytes
_MAIN = "import sys\nfrom tidegate.boot.stage2 import main\nsys.exit(main())\n"


def build_stage2(trust: TrustPolicy) -> bytes:
    """Return the second stage that accepts systems signed under ``trust``; the same input gives the same bytes."""
    source = Path(tidegate.__file__).parent
    files = {"__main__.py": _MAIN.encode(), "tidegate/__init__.py": (source / "__init__.py").read_bytes()}
    files[f"tidegate/boot/{ANCHORS}"] = trust.encode()
    for room in _ROOMS:
        for path in sorted((source / room).glob("*.py")):
            files[f"tidegate/{room}/{path.name}"] = path.read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o444 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(entry, files[name])
    return archive.getvalue()
