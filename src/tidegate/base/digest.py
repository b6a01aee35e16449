"""SHA-256 from the interpreter itself.

``hashlib`` gives OpenSSL's, which is quicker for megabytes and brings 3.4 MB of library into a process that digests a
few kilobytes. The same constructor either way (FIPS 180-4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol


class Digest(Protocol):
    """A digest under way."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


def _find() -> Callable[[bytes], Digest]:
    """Return the interpreter's own constructor; ``hashlib``'s where it was built without."""
    for module in ("_sha2", "_sha256"):  # from Python 3.12 on; before
        try:
            return __import__(module).sha256  # type: ignore[no-any-return]
        except (ImportError, AttributeError):
            continue
    import hashlib

    return hashlib.sha256


if TYPE_CHECKING:

    def sha256(data: bytes = b"", /) -> Digest:
        """Return the digest of ``data``, to which more can be added."""
        ...
else:
    sha256 = _find()
