"""OpenSSL's provider structures, and Python functions in the shape that they hold.

The functions are cffi's: whatever goes wrong before, in or behind the Python code, C gets 0. A callback of ctypes whose
first instruction never runs (a signal's handler raises there, the stack is at its limit) returns what lay in memory,
and a peer that nobody has checked is in.
Touches: memory that OpenSSL keeps pointers to until the process ends.
Source: openssl/core.h; OpenSSL provider(7), OSSL_PARAM(3); cffi, "Using the ffi/lib objects", callbacks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any

# what cryptography has loaded already; the package cffi around it brings a parser of C
import _cffi_backend  # type: ignore[import-untyped]

from tidegate.tls.interrupts import raise_behind, remember_callback

INTEGER, UNSIGNED, UTF8, OCTETS = 1, 2, 4, 5  # OSSL_PARAM_*
_UNMODIFIED = 2 ** (8 * ctypes.sizeof(c_size_t)) - 1
_MAX_PARAMETERS = 64  # OpenSSL sends a dozen at most
_FFI = _cffi_backend.FFI()


class Parameter(ctypes.Structure):
    """OSSL_PARAM."""

    _fields_ = (
        ("key", c_char_p),
        ("type", c_uint),
        ("data", c_void_p),
        ("size", c_size_t),
        ("returned", c_size_t),
    )


class _Dispatch(ctypes.Structure):
    """OSSL_DISPATCH."""

    _fields_ = (("number", c_int), ("function", c_void_p))


class _Algorithm(ctypes.Structure):
    """OSSL_ALGORITHM."""

    _fields_ = (
        ("names", c_char_p),
        ("properties", c_char_p),
        ("implementation", c_void_p),
        ("description", c_char_p),
    )


def read_parameters(address: int | None) -> list[tuple[bytes, bytes]]:
    """Return the members of an OSSL_PARAM array in order, values as bytes (empty where one is asked for)."""
    return [(one.key, ctypes.string_at(one.data, one.size) if one.data else b"") for one in _parameters(address)]


def answer_parameters(address: int, known: Mapping[bytes, Callable[[int], object]]) -> None:
    """Let each asked member that is ``known`` be filled in: the function gets its address."""
    for one in _parameters(address):
        answer = known.get(one.key)
        if answer is not None:
            answer(ctypes.addressof(one))


def _parameters(address: int | None) -> list[Parameter]:
    found: list[Parameter] = []
    while address and len(found) < _MAX_PARAMETERS:
        one = Parameter.from_address(address)
        if one.key is None:
            break
        found.append(one)
        address += ctypes.sizeof(Parameter)
    return found


def one_number(name: bytes, holder: ctypes.c_uint64) -> Any:
    """Return an OSSL_PARAM array with one number; ``holder`` has to outlive it."""
    member = Parameter(name, UNSIGNED, ctypes.addressof(holder), ctypes.sizeof(holder), _UNMODIFIED)
    return (Parameter * 2)(member, Parameter())


def _fail(_: type[BaseException], error: BaseException, __: object) -> None:
    """Take what a callback raised: nothing may cross C, and cffi would print it with what it holds."""
    raise_behind(error)


remember_callback(_fail)


class CTables:
    """Keeps everything that OpenSSL points to."""

    def __init__(self) -> None:
        self._kept: list[object] = []

    def keep_for_ever(self) -> None:
        """Never let go: OpenSSL calls later than modules and their globals live."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._kept))

    def function(self, declaration: str, function: Callable[..., Any]) -> int:
        """Return a C function pointer; what ``function`` raises becomes 0 or NULL, C's word for failure.

        ``declaration``: the result and the arguments in C, pointers that Python only passes on as ``uintptr_t``.
        """
        remember_callback(function)
        error = {} if declaration.startswith("void") else {"error": 0}
        made = _FFI.callback(declaration, function, onerror=_fail, **error)
        self._kept.append(made)
        return int(_FFI.cast("uintptr_t", made))

    def text(self, value: bytes) -> int:
        """Return the address of a C string."""
        buffer = ctypes.create_string_buffer(value)
        self._kept.append(buffer)
        return ctypes.addressof(buffer)

    def dispatch(self, functions: Mapping[int, int]) -> int:
        """Return the address of a table of functions by their numbers."""
        entries = [_Dispatch(number, function) for number, function in functions.items()]
        return self._array(_Dispatch, [*entries, _Dispatch()])

    def algorithms(self, properties: bytes, rows: Mapping[bytes, int]) -> int:
        """Return the address of a table of algorithms: names and dispatch table."""
        entries = [_Algorithm(names, properties, functions, None) for names, functions in rows.items()]
        return self._array(_Algorithm, [*entries, _Algorithm()])

    def descriptions(self, types: Mapping[bytes, int]) -> int:
        """Return the address of an array that says which parameters there are."""
        entries = [Parameter(name, kind, None, 0, _UNMODIFIED) for name, kind in types.items()]
        return self._array(Parameter, [*entries, Parameter()])

    def _array(self, kind: type[Any], entries: list[Any]) -> int:
        array = (kind * len(entries))(*entries)
        self._kept.append(array)
        return ctypes.addressof(array)
