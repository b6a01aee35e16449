"""The libssl and libcrypto that this interpreter's ``ssl`` module is linked with, and no other.

Touches: the loaded libraries, through ctypes. Others may be in the process as well (a wheel brings its own), so symbols
are looked up through the ``_ssl`` module itself, whose dependencies they have to be.
"""

from __future__ import annotations

import _ssl
import ctypes
import ssl
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_uint64, c_ulong, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.tls.errors import LibraryUnsupported, VersionUnsupported

OLDEST, NEWEST = (3, 0), (5, 0)  # providers came with 3.0; what 5.0 changes nobody knows yet

# numbers of SSL_CTX_ctrl and its kin: public, in ssl.h and tls1.h, unchanged since they were introduced
CTRL_SESSION_CACHE = 44
CTRL_STATUS_CALLBACK = 63
CTRL_STATUS_ARGUMENT = 64
CTRL_STATUS_TYPE = 65
CTRL_GET_STATUS = 70
CTRL_SET_STATUS = 71
CTRL_CHAIN_CERTIFICATE = 89
CTRL_SIGNATURE_ALGORITHMS = 98
STATUS_TYPE_OCSP = 1

_P = c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "OpenSSL_version_num": (c_ulong, ()),
    "OpenSSL_version": (c_char_p, (c_int,)),
    "ERR_clear_error": (None, ()),
    "ERR_set_mark": (c_int, ()),
    "ERR_pop_to_mark": (c_int, ()),
    "ERR_peek_last_error": (c_ulong, ()),
    "ERR_reason_error_string": (c_char_p, (c_ulong,)),
    "OSSL_LIB_CTX_new": (_P, ()),
    "OSSL_PROVIDER_add_builtin": (c_int, (_P, c_char_p, _P)),
    "OSSL_PROVIDER_load": (_P, (_P, c_char_p)),
    "OSSL_PARAM_set_int": (c_int, (_P, c_int)),
    "OSSL_PARAM_set_utf8_string": (c_int, (_P, c_char_p)),
    "EVP_PKEY_CTX_new_from_name": (_P, (_P, c_char_p, c_char_p)),
    "EVP_PKEY_CTX_free": (None, (_P,)),
    "EVP_PKEY_fromdata_init": (c_int, (_P,)),
    "EVP_PKEY_fromdata": (c_int, (_P, POINTER(_P), c_int, _P)),
    "EVP_PKEY_free": (None, (_P,)),
    "CRYPTO_malloc": (_P, (c_size_t, c_char_p, c_int)),
    "OPENSSL_sk_new_null": (_P, ()),
    "OPENSSL_sk_push": (c_int, (_P, _P)),
    "OPENSSL_sk_num": (c_int, (_P,)),
    "OPENSSL_sk_value": (_P, (_P, c_int)),
    "OPENSSL_sk_free": (None, (_P,)),
    "d2i_X509": (_P, (_P, POINTER(_P), c_long)),
    "i2d_X509": (c_int, (_P, POINTER(_P))),
    "X509_free": (None, (_P,)),
    "d2i_X509_CRL": (_P, (_P, POINTER(_P), c_long)),
    "X509_CRL_free": (None, (_P,)),
    "X509_verify_cert": (c_int, (_P,)),
    "X509_STORE_CTX_set0_crls": (None, (_P, _P)),
    "X509_STORE_CTX_set_error": (None, (_P, c_int)),
    "SSL_CTX_get_options": (c_uint64, (_P,)),
    "SSL_CTX_get_verify_mode": (c_int, (_P,)),
    "SSL_CTX_get0_param": (_P, (_P,)),
    "X509_VERIFY_PARAM_set_time": (None, (_P, c_long)),  # time_t
    "SSL_CTX_use_certificate": (c_int, (_P, _P)),
    "SSL_CTX_use_PrivateKey": (c_int, (_P, _P)),
    "SSL_CTX_check_private_key": (c_int, (_P,)),
    "SSL_CTX_add_client_CA": (c_int, (_P, _P)),
    "SSL_CTX_ctrl": (c_long, (_P, c_int, c_long, _P)),
    "SSL_CTX_callback_ctrl": (c_long, (_P, c_int, _P)),
    "SSL_CTX_set_cert_verify_callback": (None, (_P, _P, _P)),
    "SSL_ctrl": (c_long, (_P, c_int, c_long, _P)),
    "SSL_get0_verified_chain": (_P, (_P,)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One line of /proc/self/maps."""

    start: int
    end: int
    writable: bool
    path: str


class Library:
    """The functions above with their types declared; each is an attribute of its C name."""

    def __init__(self, handle: object, quick: object = None) -> None:
        """Take the functions from ``handle``; raise ``tls.unsupported.library`` naming those that are not there.

        ``quick`` is the same library for calls so short that letting other threads run meanwhile would cost more.
        """
        missing = []
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(quick if quick and name.startswith("ERR_") else handle, name, None)
            if function is None:
                missing.append(name)
                continue
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if missing:
            raise LibraryUnsupported(
                f"the ssl module's library ({ssl.OPENSSL_VERSION}) does not show {len(missing)} functions, "
                f"{missing[0]} first",
                missing=len(missing),
                first=missing[0],
            )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # for the type checker: __init__ has set all there are

    def reason(self) -> str:
        """Return this thread's last OpenSSL error in words and forget all of them.

        An error that stayed behind would be blamed on the thread's next TLS operation.
        """
        text = self.ERR_reason_error_string(self.ERR_peek_last_error())
        self.ERR_clear_error()
        return text.decode() if text else "no reason given"

    def path(self) -> str:
        """Return the file that the functions come from."""
        address = ctypes.cast(self.SSL_CTX_ctrl, c_void_p).value or 0
        return next((one.path for one in read_mappings() if one.start <= address < one.end), "unknown")


def load_library() -> Library:
    """Return the library of the ``ssl`` module; raise ``tls.unsupported.library`` or ``tls.unsupported.version``."""
    try:
        file = getattr(_ssl, "__file__", None)  # None: built into the interpreter
        handle, quick = ctypes.CDLL(file), ctypes.PyDLL(file)
    except OSError as error:
        raise LibraryUnsupported(f"the ssl module's own library cannot be opened: {error}") from error
    version = getattr(handle, "OpenSSL_version_num", None)
    if version is not None:
        version.restype = c_ulong
        check_version(version())
    library = Library(handle, quick)
    library.ERR_clear_error()  # another user's leftovers are not ours
    found = library.OpenSSL_version(0).decode()
    if found != ssl.OPENSSL_VERSION:
        raise LibraryUnsupported(f"found {found}, but the ssl module runs on {ssl.OPENSSL_VERSION}")
    return library


def check_version(number: int) -> tuple[int, int]:
    """Return major and minor of an OPENSSL_VERSION_NUMBER, or raise ``tls.unsupported.version``."""
    version = (number >> 28 & 0xF, number >> 20 & 0xFF)
    if not OLDEST <= version < NEWEST:
        raise VersionUnsupported(
            f"the ssl module runs on {ssl.OPENSSL_VERSION} (API {version[0]}.{version[1]}); 3.0 or newer is needed",
            major=version[0],
            minor=version[1],
        )
    return version


def read_mappings(path: Path = Path("/proc/self/maps")) -> list[Mapping]:
    """Return this process's memory map."""
    found = []
    for line in path.read_text().splitlines():
        span, rights, *rest = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        name = rest[3] if len(rest) > 3 else ""
        found.append(Mapping(start=start, end=end, writable=rights.startswith("rw"), path=name))
    return found
