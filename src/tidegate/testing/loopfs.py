"""A small ext4 in an image file, mounted: for what needs a real file system, its journal or the kernel's encryption.

Touches: loop devices and mounts (root). Leaves to others: what is done in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tidegate.base.program import run_program

IMAGE_BYTES = 16 << 20


@contextlib.contextmanager
def mounted_ext4(
    folder: Path, *, features: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[tuple[Path, Path]]:
    """Make an image of 16 MiB below ``folder``, mount it, and give the mount and the image; unmounted at the end.

    ``features`` are those of mke2fs (such as ``encrypt``), ``options`` those of mount. Raises ``base.program.*`` where
    this machine cannot. What is still busy at the end is unmounted as soon as it is not.
    """
    image, place = folder / "image", folder / "mount"
    with image.open("wb") as stream:
        stream.truncate(IMAGE_BYTES)
    place.mkdir()
    run_program(["mkfs.ext4", "-q", *(["-O", ",".join(features)] if features else []), str(image)])
    run_program(["mount", "-o", ",".join(["loop", *options]), str(image), str(place)])
    try:
        yield place, image
    finally:
        done = run_program(["umount", str(place)], check=False)
        if done.returncode != 0 and place.is_mount():
            run_program(["umount", "--lazy", str(place)])
