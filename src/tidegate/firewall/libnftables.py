"""libnftables by ctypes.

Touches: the kernel's packet filter, of the network namespace in which the process was when the engine was made.

Only text goes in and out: the JSON interface is left out of small builds of the library. The rollback's process lives
from this file, so it imports next to nothing.
"""

from __future__ import annotations

import ctypes
import os

LIBRARY = "libnftables.so.1"

# nftables/libnftables.h
_CTX_DEFAULT = 0
_OUTPUT_STATELESS = 1 << 2
_OUTPUT_HANDLE = 1 << 3
_OUTPUT_TERSE = 1 << 11


class LibraryEngine:
    """libnftables by ctypes: a ban takes a fraction of a millisecond, a process start takes ten."""

    name = "library"

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises ``OSError`` when the library is not installed."""
        self._library = ctypes.CDLL(library)
        declare = {
            "nft_ctx_new": (ctypes.c_void_p, [ctypes.c_uint32]),
            "nft_ctx_free": (None, [ctypes.c_void_p]),
            "nft_ctx_buffer_output": (ctypes.c_int, [ctypes.c_void_p]),
            "nft_ctx_buffer_error": (ctypes.c_int, [ctypes.c_void_p]),
            "nft_ctx_get_output_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
            "nft_ctx_get_error_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
            "nft_ctx_output_set_flags": (None, [ctypes.c_void_p, ctypes.c_uint]),
            "nft_ctx_set_dry_run": (None, [ctypes.c_void_p, ctypes.c_bool]),
            "nft_run_cmd_from_buffer": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
        }
        for name, (result, arguments) in declare.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._context: int | None = None
        self._owner = 0
        self._renew()

    def execute(
        self,
        text: str,
        *,
        dry_run: bool = False,
        stateless: bool = True,
        handles: bool = False,
        terse: bool = False,
    ) -> tuple[int, str, str]:
        if "\0" in text:
            return 1, "", "the text holds a NUL byte"
        if self._owner != os.getpid():
            self._renew()  # after a fork the netlink socket would be shared with the parent
        self._library.nft_ctx_set_dry_run(self._context, dry_run)
        flags = (_OUTPUT_STATELESS if stateless else 0) | (_OUTPUT_HANDLE if handles else 0)
        flags |= _OUTPUT_TERSE if handles or terse else 0
        self._library.nft_ctx_output_set_flags(self._context, flags)
        status = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        # Both buffers are read each time: reading one resets it for the next command.
        output = self._library.nft_ctx_get_output_buffer(self._context)
        complaint = self._library.nft_ctx_get_error_buffer(self._context)
        return status, _text(output), _text(complaint)

    def close(self) -> None:
        if self._context is not None and self._owner == os.getpid():
            self._library.nft_ctx_free(self._context)
        self._context = None
        self._owner = 0

    def __del__(self) -> None:
        """Give the socket back that the library holds, where nobody closed."""
        if getattr(self, "_context", None) is not None and os is not None:  # None: the interpreter is ending
            self.close()

    def _renew(self) -> None:
        context = self._library.nft_ctx_new(_CTX_DEFAULT)
        if not context:
            raise MemoryError("libnftables gave no context")
        self._context, self._owner = context, os.getpid()
        self._library.nft_ctx_buffer_output(context)
        self._library.nft_ctx_buffer_error(context)


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode(errors="replace")
