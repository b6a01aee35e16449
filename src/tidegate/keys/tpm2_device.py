"""One TPM: its connection, its few object slots, its sessions, and what its errors mean.

Touches: the TPM, through tpm2-tss. Importing this file without the library raises ``keys.provider.absent``.

A bare TPM (one without a resource manager in front) has three slots for objects and three for sessions, and keeps what
a killed process left in them. So every piece of work is: alone with the TPM, load, use, flush; at most one key besides
the primary; and whatever is loaded when a connection is opened, or when the TPM has no room, is garbage and flushed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.keys.errors import (
    CapabilityMissing,
    KeyUriMalformed,
    PinLocked,
    PinRefused,
    ProviderAbsent,
    ProviderFailed,
    TokenMissing,
    UnlockRefused,
)
from tidegate.keys.tpm2_files import PRIMARY_TEMPLATE, WrappedKey
from tidegate.keys.tpm2_records import RH_OWNER, StoreRecord

os.environ.setdefault("TSS2_LOG", "all+NONE")  # else ESYS writes to stderr what we raise
try:
    import tpm2_pytss  # type: ignore[import-untyped]
except ImportError as absent:
    raise ProviderAbsent(
        "TPM keys need the extra tidegate[tpm2] and tpm2-tss (Debian package libtss2-dev to build it)", extra="tpm2"
    ) from absent

tss: Any = tpm2_pytss
T = TypeVar("T")
_TCTIS = frozenset({"device", "tabrmd", "swtpm", "mssim"})  # a free name would have any shared library loaded
_MAX_TRIES = 8  # of a command that the TPM puts off
_FIRST_WAIT_S = 0.02
_MAX_CONTEXTS = 16  # saved keys per process, about 1 KiB each
_BUSY_S = 30.0
_TCTI_LAYER = 0x0A
_TPM_LAYERS = (0x00, 0x0B, 0x0C)  # the TPM itself, or a resource manager that speaks for it
# response codes (TPM 2.0 Part 2, §6.6), format-one codes without their handle, session or parameter number
RC_INITIALIZE, RC_PCR_CHANGED, RC_NV_SPACE, RC_NV_DEFINED, RC_LOCKOUT = 0x100, 0x128, 0x14B, 0x14C, 0x921
RC_POLICY = 0x126  # what TPM2_PolicyNV answers when the comparison does not hold
RC_VALUE, RC_HANDLE, RC_AUTH_FAIL, RC_POLICY_FAIL, RC_INTEGRITY, RC_BAD_AUTH = 0x84, 0x8B, 0x8E, 0x9D, 0x9F, 0xA2
_RC_LATER = frozenset({0x908, 0x90A, 0x920, 0x922, 0x923})  # yielded, testing, NV rate, retry, NV unavailable
_RC_FULL = frozenset({0x901, 0x902, 0x903, 0x904, 0x905, 0x906})
_PT_LOCKOUT_COUNTER, _PT_MAX_AUTH_FAIL, _PT_LOCKOUT_INTERVAL, _PT_LOCKOUT_RECOVERY = 0x20E, 0x20F, 0x210, 0x211


def response_code(error: Any) -> int | None:
    """Return the TPM's response code, or ``None`` if it was not the TPM that failed."""
    rc = int(error.rc)
    if rc >> 16 not in _TPM_LAYERS:
        return None
    return rc & 0xBF if rc & 0x80 else rc & 0xFFFF


class Tpm:
    """One TPM, used by one thread of one process at a time; survives fork, restarts and other users' leftovers."""

    def __init__(self, tcti: str) -> None:
        name, _, place = tcti.partition(":")
        if name not in _TCTIS:
            raise KeyUriMalformed(f"no TCTI {name!r}; take one of {', '.join(sorted(_TCTIS))}", tcti=tcti)
        self.tcti = tcti
        self._managed = name == "tabrmd" or (name == "device" and "tpmrm" in place)
        self._exclusive = name == "device" and not self._managed  # /dev/tpm0 has one user at a time
        self._contexts: OrderedDict[bytes, Any] = OrderedDict()
        self._begin()
        _EVERY.add(self)

    def _begin(self) -> None:
        """Start anew, as in a child process: its parent's connection and lock are not touched."""
        self.lock = threading.RLock()
        self._esys: Any = None
        self._alone: socket.socket | None = None

    def after_fork(self) -> None:
        """Give the child its own connection; saved keys stay usable, the TPM is the same."""
        if self._alone is not None:
            self._alone.close()
        self._begin()

    def run(self, work: Callable[[Chip], T], *, once: bool = False, owner: Callable[[], Secret] | None = None) -> T:
        """Return ``work(chip)``; everything that it loaded is flushed, whatever happened.

        A TPM that was restarted or is full of somebody's leftovers gets a second try; with ``once`` (a PIN, an
        increment) only if it did nothing the first time. ``owner`` gives the owner's authorisation value where it is
        needed. Every failure is coded.
        """
        with self.lock, self._only_process():
            for tried in (False, True):
                chip: Chip | None = None
                try:
                    chip = Chip(self._connected(probe=once), self._contexts, owner)
                    with chip:
                        return work(chip)
                except tss.TSS2_Exception as error:
                    final = tried or (once and chip is not None and response_code(error) not in _RC_FULL)
                    if not self._heal(error) or final:
                        raise _coded(error, chip, self.tcti) from error
                finally:
                    if self._exclusive:
                        self.disconnect()
            raise ProviderFailed("the TPM failed twice", tcti=self.tcti)

    def disconnect(self) -> None:
        """Close the connection; the next piece of work opens it again."""
        with self.lock:
            esys, self._esys = self._esys, None
            if esys is not None:
                esys.close()

    def forget(self, key: WrappedKey) -> None:
        """Drop the saved context of a key that is being destroyed."""
        with self.lock:
            self._contexts.pop(key.name, None)

    @contextlib.contextmanager
    def _only_process(self) -> Iterator[None]:
        """Keep other Tidegate processes away from a bare TPM.

        The lock is an abstract socket named after the TCTI: the kernel frees it when its process dies.
        """
        if self._managed or self._alone is not None:
            yield
            return
        address = b"\0tidegate-tpm2-" + hashlib.sha256(self.tcti.encode()).digest()[:12].hex().encode()
        self._alone = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        end, wait = time.monotonic() + _BUSY_S, 0.0005
        try:
            while True:
                try:
                    self._alone.bind(address)
                    break
                except OSError as error:
                    if time.monotonic() > end:
                        raise TokenMissing(f"another process keeps the TPM at {self.tcti}", tcti=self.tcti) from error
                time.sleep(wait)
                wait = min(2 * wait, 0.01)
            yield
        finally:
            self._alone.close()
            self._alone = None

    def _connected(self, *, probe: bool) -> Any:
        """Return a connection; a bare TPM is emptied when it is opened, with ``probe`` it is so now and answers."""
        fresh = self._esys is None
        if fresh:
            self._esys = _Patient(self._open())
        if not self._managed and (fresh or probe):
            self._sweep()
        return self._esys

    def _open(self) -> Any:
        end = time.monotonic() + (_BUSY_S if self._exclusive else 0)
        while True:
            try:
                return tss.ESAPI(self.tcti)
            except tss.TSS2_Exception:
                if time.monotonic() >= end:
                    raise
                time.sleep(_FIRST_WAIT_S)

    def _sweep(self) -> None:
        """Flush what a killed process left loaded: we are alone and have loaded nothing."""
        try:
            left = _handles(self._esys, 0x80000000) + _handles(self._esys, 0x02000000)
        except tss.TSS2_Exception as error:
            if response_code(error) != RC_INITIALIZE:
                raise
            self._esys.startup(tss.TPM2_SU.CLEAR)
            return
        for handle in left:
            self._esys.flush_context(self._esys.tr_from_tpmpublic(handle))

    def _heal(self, error: Any) -> bool:
        """Return whether trying again from a clean start may help, and make it clean."""
        code = response_code(error)
        if code is None:  # the way to the TPM, or ESYS itself after it broke
            with contextlib.suppress(tss.TSS2_Exception):
                self.disconnect()
            return True
        if code in {*_RC_FULL, RC_INITIALIZE} and not self._managed:
            with contextlib.suppress(tss.TSS2_Exception):
                self._sweep()
            return True
        return False


_EVERY: weakref.WeakSet[Tpm] = weakref.WeakSet()
_BY_TCTI: weakref.WeakValueDictionary[str, Tpm] = weakref.WeakValueDictionary()
_BY_TCTI_LOCK = threading.Lock()


def tpm_at(tcti: str) -> Tpm:
    """Return this process's one ``Tpm`` at ``tcti``, so that two stores on it share its lock and connection."""
    with _BY_TCTI_LOCK:
        found = _BY_TCTI.get(tcti)
        if found is None:
            found = _BY_TCTI[tcti] = Tpm(tcti)
        return found


_HELD: list[threading.RLock] = []


def _before_fork() -> None:
    """Wait until no TPM command is under way.

    A child with a copy of a connection in the middle of a command would keep the TPM waiting for its end, for ever.
    """
    _BY_TCTI_LOCK.acquire()
    for tpm in list(_EVERY):
        tpm.lock.acquire()
        _HELD.append(tpm.lock)


def _after_fork_in_parent() -> None:
    while _HELD:
        _HELD.pop().release()
    _BY_TCTI_LOCK.release()


def _after_fork_in_child() -> None:
    _HELD.clear()
    _BY_TCTI_LOCK.release()
    for tpm in list(_EVERY):
        tpm.after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class _Patient:
    """ESYS whose commands are repeated, a bounded number of times, while the TPM says that it is busy."""

    def __init__(self, esys: Any) -> None:
        self._esys = esys

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._esys, name)

        def patient(*arguments: Any, **named: Any) -> Any:
            wait = _FIRST_WAIT_S
            for _ in range(_MAX_TRIES - 1):
                try:
                    return command(*arguments, **named)
                except tss.TSS2_Exception as error:
                    if response_code(error) not in _RC_LATER:
                        raise
                time.sleep(wait)
                wait *= 1.5
            return command(*arguments, **named)

        return patient


class Chip:
    """The TPM during one piece of work: loads, authorises, and flushes at the end of its ``with``."""

    def __init__(self, esys: Any, contexts: OrderedDict[bytes, Any], owner: Callable[[], Secret] | None = None) -> None:
        self.esys = esys
        self._contexts = contexts
        self._loaded: list[Any] = []
        self._borrowed: list[Any] = []
        self._owner = owner
        self._primary: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Flush everything that was loaded, forget every PIN; what the TPM no longer knows needs no flushing."""
        if self._owner is not None:
            with contextlib.suppress(tss.TSS2_Exception):
                self.esys.tr_set_auth(tss.ESYS_TR.OWNER, None)
        while self._loaded:
            with contextlib.suppress(tss.TSS2_Exception):
                self.esys.flush_context(self._loaded.pop())
        while self._borrowed:  # ESYS would remember a PIN that was set for it
            with contextlib.suppress(tss.TSS2_Exception):
                self.esys.tr_close(self._borrowed.pop())

    def owner_session(self) -> Any:
        """Return a session that authorises as owner; the value itself never crosses the bus."""
        if self._owner is None:
            return tss.ESYS_TR.PASSWORD
        with self._owner() as auth:
            self.esys.tr_set_auth(tss.ESYS_TR.OWNER, bytes(auth.view()))
        return self.session()

    def session(self, salt: Any = None, *, policy: bool = False, private: bool = False) -> Any:
        """Return a session, salted to ``salt``; ``private`` encrypts the first parameter each way on the bus."""
        kind = tss.TPM2_SE.POLICY if policy else tss.TPM2_SE.HMAC
        symmetric = tss.TPMT_SYM_DEF.parse("aes128cfb") if private else None
        none = tss.ESYS_TR.NONE
        made = self.esys.start_auth_session(salt or none, none, kind, symmetric, tss.TPM2_ALG.SHA256)
        self._loaded.append(made)
        wanted = tss.TPMA_SESSION.CONTINUESESSION
        if private:
            wanted |= tss.TPMA_SESSION.DECRYPT | tss.TPMA_SESSION.ENCRYPT
        self.esys.trsess_set_attributes(made, wanted)
        return made

    def primary(self, record: StoreRecord, auth: Callable[[], Secret] | None) -> Any:
        """Return the storage key, loaded; raise ``keys.unlock.refused`` if this TPM has another one."""
        if self._primary is not None:
            return self._primary
        handle = self._restored(record.parent_name)
        if handle is None and record.parent == RH_OWNER:
            handle = self.create_primary()
            self._save(record.parent_name, handle)
        elif handle is None:
            handle = self.persistent(record.parent)
        if handle is None or self.name(handle) != record.parent_name:
            raise UnlockRefused("this TPM has another storage key than the one that the folder was made with")
        if auth is not None:
            with auth() as value:
                self.esys.tr_set_auth(handle, bytes(value.view()))
        self._primary = handle
        return handle

    def create_primary(self) -> Any:
        """Return the standard storage key of the owner hierarchy, loaded."""
        public = public_of(PRIMARY_TEMPLATE)
        made = self.esys.create_primary(
            tss.TPM2B_SENSITIVE_CREATE(), public, tss.ESYS_TR.OWNER, session1=self.owner_session()
        )[0]
        self._loaded.append(made)
        return made

    def persistent(self, handle: int) -> Any | None:
        """Return a key that lives in the TPM, or ``None``."""
        try:
            found = self.esys.tr_from_tpmpublic(handle)
        except tss.TSS2_Exception as error:
            if response_code(error) != RC_HANDLE:
                raise
            return None
        self._borrowed.append(found)
        return found

    def load(self, key: WrappedKey, parent: Callable[[], Any]) -> Any:
        """Return ``key`` loaded; it comes back from its saved context without its parent where that is possible.

        Raises ``keys.unlock.refused`` for a key of another parent or TPM, or an altered one.
        """
        handle = self._restored(key.name)
        if handle is not None:
            return handle
        private = tss.TPM2B_PRIVATE(key.private)
        try:
            handle = self.esys.load(parent(), private, public_of(key.public))
        except tss.TSS2_Exception as error:
            if response_code(error) in _RC_FULL or response_code(error) is None:
                raise
            raise UnlockRefused(f"the TPM does not load this key: {error}", rc=int(error.rc)) from error
        self._loaded.append(handle)
        self._save(key.name, handle)
        return handle

    def create(self, parent: Any, template: bytes, *, auth: Secret | None, data: Secret | None) -> tuple[bytes, bytes]:
        """Return public and wrapped private area of a new key; PIN and data are encrypted on the bus."""
        sensitive = tss.TPMS_SENSITIVE_CREATE()
        if auth is not None:
            sensitive.userAuth = tss.TPM2B_AUTH(bytes(auth.view()))
        if data is not None:
            sensitive.data = tss.TPM2B_SENSITIVE_DATA(bytes(data.view()))
        session = self.session(parent, private=True)
        wrapped = tss.TPM2B_SENSITIVE_CREATE(sensitive)
        private, public = self.esys.create(parent, wrapped, public_of(template), session1=session)[:2]
        return bytes(public.publicArea.marshal()), bytes(private.marshal())[2:]

    def name(self, handle: Any) -> bytes:
        """Return the name of a loaded object."""
        return bytes(self.esys.tr_get_name(handle))

    def pcr_values(self, pcrs: frozenset[int]) -> dict[int, bytes]:
        """Return registers of the SHA-256 bank; raise ``keys.capability.missing`` if the bank is switched off."""
        wanted, values = sorted(pcrs), {}
        for start in range(0, len(wanted), 8):  # a response has at most eight
            part = wanted[start : start + 8]
            _, _, digests = self.esys.pcr_read("sha256:" + ",".join(map(str, part)))
            if digests.count != len(part):
                raise CapabilityMissing("this TPM keeps no SHA-256 registers", provider="tpm2")
            values.update({pcr: bytes(digests[number]) for number, pcr in enumerate(part)})
        return values

    def property(self, number: int) -> int:
        """Return a TPM property (TPM 2.0 Part 2, §6.13)."""
        _, answer = self.esys.get_capability(tss.TPM2_CAP.TPM_PROPERTIES, number, 1)
        return int(answer.data.tpmProperties[0].value)

    def _restored(self, name: bytes) -> Any | None:
        saved = self._contexts.get(name)
        if saved is None:
            return None
        try:
            handle = self.esys.context_load(saved)
        except tss.TSS2_Exception as error:
            if response_code(error) in _RC_FULL or response_code(error) is None:
                raise
            self._contexts.pop(name, None)  # of before a TPM reset
            return None
        self._loaded.append(handle)
        self._contexts.move_to_end(name)
        return handle

    def _save(self, name: bytes, handle: Any) -> None:
        self._contexts[name] = self.esys.context_save(handle)
        while len(self._contexts) > _MAX_CONTEXTS:
            self._contexts.popitem(last=False)


def public_of(area: bytes) -> Any:
    """Return the library's form of a TPMT_PUBLIC; raise ``keys.store.malformed`` for none."""
    try:
        return tss.TPM2B_PUBLIC.unmarshal(len(area).to_bytes(2, "big") + area)[0]
    except tss.TSS2_Exception as error:
        raise UnlockRefused("a key's public area is none that the library reads") from error


def _handles(esys: Any, first: int) -> list[int]:
    """Return the handles of the kind of ``first`` that are loaded."""
    _, answer = esys.get_capability(tss.TPM2_CAP.HANDLES, first, 64)
    return [int(handle) for handle in answer.data.handles if int(handle) >> 24 == first >> 24 or first >> 24 == 2]


def _coded(error: Any, chip: Chip | None, tcti: str) -> TidegateError:
    """Return what an error that nobody expected means to the person who meets it."""
    code, rc = response_code(error), int(error.rc)
    if code is None and rc >> 16 == _TCTI_LAYER and rc & 0xFFFF == 2:
        return ProviderAbsent(f"tpm2-tss has no TCTI for {tcti} (Debian packages libtss2-tcti-*)", tcti=tcti)
    if code is None and rc >> 16 == _TCTI_LAYER:
        return TokenMissing(f"no TPM answers at {tcti}: {error}", tcti=tcti, rc=rc)
    if code == RC_LOCKOUT and chip is not None:
        return locked(chip)
    if code in (RC_AUTH_FAIL, RC_BAD_AUTH):
        return PinRefused(f"the TPM refuses the authorisation: {error}; is owner-auth-source the right one?", rc=rc)
    return ProviderFailed(f"the TPM failed: {error} (0x{rc:x})", tcti=tcti, rc=rc)


def locked(chip: Chip) -> TidegateError:
    """Return ``keys.pin.locked`` with the seconds until the TPM takes one PIN again."""
    interval = chip.property(_PT_LOCKOUT_INTERVAL)
    over = chip.property(_PT_LOCKOUT_COUNTER) - chip.property(_PT_MAX_AUTH_FAIL) + 1
    wait = max(over, 1) * interval
    return PinLocked(
        f"the TPM took too many wrong PINs: it takes the next one after at most {wait} s with its power on",
        wait_s=wait,
        recovery_s=chip.property(_PT_LOCKOUT_RECOVERY),
    )


def refused(chip: Chip, name: str) -> TidegateError:
    """Return ``keys.pin.refused`` with the wrong tries that are left before the TPM locks."""
    left = max(chip.property(_PT_MAX_AUTH_FAIL) - chip.property(_PT_LOCKOUT_COUNTER), 0)
    return PinRefused(f"the PIN of key {name!r} is another one; wrong tries left: {left}", key=name, tries_left=left)


def require_try_left(chip: Chip, name: str) -> None:
    """Return if a PIN from a file may be tried, else raise ``keys.pin.refused``.

    A service that is started again and again with a wrong PIN must not lock the TPM for everybody: the try before the
    lock is left to people. The TPM forgets a wrong try after the seconds named.
    """
    used = chip.property(_PT_LOCKOUT_COUNTER)
    if used and used == chip.property(_PT_MAX_AUTH_FAIL) - 1:
        wait = chip.property(_PT_LOCKOUT_INTERVAL)
        raise PinRefused(
            f"the TPM locks with the next wrong PIN: that of key {name!r} is not tried from a file for {wait} s",
            key=name,
            tries_left=1,
            wait_s=wait,
        )


def is_handle_name(name: str) -> bool:
    """Return whether a key is named by its persistent handle."""
    return re.fullmatch(r"0x81[0-7][0-9a-f]{5}", name) is not None
