"""The self-check: where the technique would not work it says so, and touches no wild memory on the way."""

import ctypes
import ssl
import sys
import types

import pytest

from tidegate.base.errors import Fault, TidegateError
from tidegate.tls import layout, libssl, selfcheck
from tidegate.tls.layout import ContextLayout, prove_layout
from tidegate.tls.libssl import Library, check_version, load_library, read_mappings
from tidegate.tls.selfcheck import examine_platform, require_platform


def code_of(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    assert isinstance(caught.value, Fault)
    return caught.value.code


def test_it_works_here_and_is_remembered() -> None:
    platform = require_platform()
    assert platform.versions == ("TLSv1.2", "TLSv1.3")
    assert platform is require_platform()
    assert platform.library.path().split("/")[-1].startswith(("libssl", "_ssl"))


@pytest.mark.parametrize(
    "number",
    [0x1010117F, 0x20000000, 0x50000000, 0x1010107F, 0],  # 1.1.1w, LibreSSL, 5.0, BoringSSL's word
    ids=["1.1.1", "LibreSSL", "5.0", "BoringSSL", "none"],
)
def test_versions_that_are_refused(number) -> None:
    assert code_of(check_version, number) == "tls.unsupported.version"


@pytest.mark.parametrize(("number", "version"), [(0x30000130, (3, 0)), (0x30500040, (3, 5)), (0x40000000, (4, 0))])
def test_versions_that_are_taken(number, version) -> None:
    assert check_version(number) == version


def test_a_library_of_an_old_version_is_refused_for_its_version(monkeypatch) -> None:
    """OpenSSL 1.1 lacks the functions as well; the version is what a person has to hear of."""
    old = types.SimpleNamespace(OpenSSL_version_num=types.SimpleNamespace())
    old.OpenSSL_version_num = lambda: 0x1010117F
    monkeypatch.setattr(libssl.ctypes, "CDLL", lambda name: old)
    monkeypatch.setattr(libssl.ctypes, "PyDLL", lambda name: old)
    assert code_of(load_library) == "tls.unsupported.version"


def test_a_library_without_providers_is_refused() -> None:
    real = ctypes.CDLL(libssl._ssl.__file__)

    class WithoutProviders:
        def __getattr__(self, name):
            if name.startswith("OSSL_PROVIDER"):
                raise AttributeError(name)
            return getattr(real, name)

    with pytest.raises(TidegateError) as caught:
        Library(WithoutProviders())
    assert caught.value.code == "tls.unsupported.library"
    assert caught.value.fields == {"missing": 2, "first": "OSSL_PROVIDER_add_builtin"}


def test_a_statically_linked_ssl_module_is_refused(monkeypatch) -> None:
    """Nothing of its OpenSSL is visible: the look-up finds the interpreter itself."""
    monkeypatch.setattr(libssl.ctypes, "CDLL", lambda name: types.SimpleNamespace())
    monkeypatch.setattr(libssl.ctypes, "PyDLL", lambda name: types.SimpleNamespace())
    assert code_of(load_library) == "tls.unsupported.library"


def test_an_ssl_module_that_cannot_be_opened(monkeypatch) -> None:
    monkeypatch.setattr(libssl._ssl, "__file__", "/nonexistent/_ssl.so")
    assert code_of(load_library) == "tls.unsupported.library"


def test_another_openssl_than_the_ssl_module_s_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", "OpenSSL 3.0.0 of somebody else")
    assert code_of(load_library) == "tls.unsupported.library"


@pytest.mark.parametrize("offset", [0, 8, 24, 32, 40, 48, 4096])
def test_wrong_offsets_are_refused_without_a_crash(offset) -> None:
    """A reference count, a type object, flags, and what lies behind the object."""
    assert code_of(prove_layout, load_library(), offset) == "tls.unsupported.layout"


@pytest.mark.parametrize("value", [0, 1, 0x10, 2**47 - 8, 2**63, 2**64 - 8])
def test_what_is_no_pointer_is_never_followed(value, monkeypatch) -> None:
    class Forbidden:
        def __getattr__(self, name):
            raise AssertionError("followed")

    place = ctypes.c_uint64(value)
    real = libssl.c_void_p

    class Elsewhere(real):
        @classmethod
        def from_address(cls, address):
            return real.from_address(ctypes.addressof(place))

    monkeypatch.setattr(layout, "c_void_p", Elsewhere)
    assert code_of(prove_layout, Forbidden()) == "tls.unsupported.layout"


def test_a_live_pointer_to_something_else_is_refused(monkeypatch) -> None:
    """Readable and writable memory that does not change when Python changes the context."""
    memory = ctypes.create_string_buffer(1 << 20)
    place = ctypes.c_uint64((ctypes.addressof(memory) + 4096) & ~15)
    real = libssl.c_void_p

    class Elsewhere(real):
        @classmethod
        def from_address(cls, address):
            return real.from_address(ctypes.addressof(place))

    monkeypatch.setattr(layout, "c_void_p", Elsewhere)
    assert code_of(prove_layout, load_library()) == "tls.unsupported.layout"


def test_read_only_memory_and_a_mapping_s_end_are_refused() -> None:
    library = load_library()
    assert code_of(prove_layout, library, 16, []) == "tls.unsupported.layout"
    frozen = [libssl.Mapping(start=one.start, end=one.end, writable=False, path=one.path) for one in read_mappings()]
    assert code_of(prove_layout, library, 16, frozen) == "tls.unsupported.layout"


def test_without_proc_nothing_is_proven(monkeypatch) -> None:
    def absent():
        raise FileNotFoundError

    monkeypatch.setattr(layout, "read_mappings", absent)
    assert code_of(prove_layout, load_library()) == "tls.unsupported.layout"


def test_another_python_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(sys, "implementation", types.SimpleNamespace(name="pypy"))
    assert code_of(prove_layout, load_library()) == "tls.unsupported.layout"


def test_a_layout_comes_from_its_proof_alone() -> None:
    with pytest.raises(TypeError):
        ContextLayout(16, object())


def test_a_failing_trial_handshake_is_refused(monkeypatch) -> None:
    def refuse(*_):
        raise ssl.SSLError("no")

    monkeypatch.setattr(selfcheck, "shake_hands", refuse)
    assert code_of(examine_platform) == "tls.unsupported.handshake"


def test_a_handshake_that_did_not_ask_the_provider_is_refused(monkeypatch) -> None:
    real = selfcheck._ThrowAwayKey.sign

    def sign(self, message):
        made = real(self, message)
        self.signatures = 0
        return made

    monkeypatch.setattr(selfcheck._ThrowAwayKey, "sign", sign)
    assert code_of(examine_platform) == "tls.unsupported.handshake"
