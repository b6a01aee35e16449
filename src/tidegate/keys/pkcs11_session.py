"""A PKCS#11 module and the login to one of its tokens: one call at a time, new after a fork, no PIN tried twice.

Touches: the vendor's library, which runs inside this process, and its token. Many modules are not safe with threads
(SoftHSM 2.6.1 crashes), none is after a fork: one lock a module, and a child initialises the module again.
A PIN is kept while its store is open, so that a lost session can be opened again; the library gets it as a Python
string, which nobody can wipe.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import TidegateError, UnsafePermissions
from tidegate.crypto.aead import Secret
from tidegate.keys.errors import (
    CapabilityMissing,
    NotExportable,
    PinLocked,
    PinMissing,
    PinRefused,
    ProviderAbsent,
    ProviderFailed,
    TokenMissing,
)

try:
    import pkcs11
    from pkcs11 import KeyType
    from pkcs11 import exceptions as p11
    from pkcs11.attributes import AttributeMapper, handle_ulong
except ImportError as missing:  # the extra is optional: a missing library is a coded error
    raise ProviderAbsent(
        "the Python library for tokens is not installed: tidegate[pkcs11]", needs="pkcs11"
    ) from missing
from pkcs11._pkcs11 import lib as Library  # noqa: N812  # a class, in lower case there

__all__ = ["Pkcs11Module", "TokenLogin", "load_module", "open_apart", "open_login", "p11", "pin_text", "pkcs11"]

Result = TypeVar("Result")

_FLAGS = pkcs11.TokenFlag
_PIN_COUNTED = _FLAGS.USER_PIN_COUNT_LOW | _FLAGS.USER_PIN_FINAL_TRY | _FLAGS.USER_PIN_LOCKED

_MAX_SHOWN_TOKENS = 8
_STARTS = 4  # of a module that shows no such token
_PAUSE_S = 0.02  # a login writes SoftHSM's files for a few milliseconds
_LOGINS = 4  # with a PIN that the token says was not what failed
_LOST = (
    p11.SessionHandleInvalid,
    p11.SessionClosed,
    p11.DeviceRemoved,
    p11.TokenNotPresent,
    p11.SlotIDInvalid,
    p11.UserNotLoggedIn,
)
_CODES: list[tuple[tuple[type[Exception], ...], type[TidegateError]]] = [
    ((p11.PinIncorrect, p11.PinInvalid, p11.PinLenRange, p11.PinExpired), PinRefused),
    ((p11.PinLocked,), PinLocked),
    ((p11.TokenNotPresent, p11.TokenNotRecognised, p11.DeviceRemoved, p11.SlotIDInvalid), TokenMissing),
    ((p11.KeyNotWrappable, p11.KeyUnextractable), NotExportable),
    ((p11.MechanismInvalid, p11.MechanismParamInvalid, p11.FunctionNotSupported, p11.KeySizeRange), CapabilityMissing),
]
_HINTS: dict[type[Exception], str] = {
    p11.PinExpired: "its PIN has to be changed first, with the vendor's tool",
    p11.UserPinNotInitialized: "nobody set a user PIN; initialise the token with the vendor's tool",
    p11.TokenWriteProtected: "it is write-protected",
    p11.SessionReadOnly: "it is write-protected",
    p11.DeviceMemory: "it has no room for another object",
    p11.SessionCount: "too many sessions are open on it",
}
_MODULES: dict[str, Pkcs11Module] = {}
_MODULES_LOCK = threading.Lock()


@contextlib.contextmanager
def translate_token_errors(what: str) -> Iterator[None]:
    """Turn what the module says (CKR_*) into our coded errors; ``what`` names the token and nothing secret."""
    try:
        yield
    except p11.PKCS11Error as error:
        said = type(error).__name__ if type(error) is not p11.PKCS11Error else str(error)
        hint = _HINTS.get(type(error), "")
        code = next((ours for theirs, ours in _CODES if isinstance(error, theirs)), ProviderFailed)
        raise code(f"{what}: {said}" + (f"; {hint}" if hint else ""), provider="pkcs11", said=said) from error


class Pkcs11Module:
    """A loaded module; everything under its ``lock``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.epoch = 0  # counts the starts of the module; sessions and handles of an older one are worthless
        self.logins: dict[tuple[str, bytes], TokenLogin] = {}
        self._pid = os.getpid()
        try:
            self._library: Library = pkcs11.lib(str(path))
        except p11.PKCS11Error as error:
            if "already initialized" in str(error):  # CKR_CRYPTOKI_ALREADY_INITIALIZED has no class of its own
                raise ProviderFailed(f"other code in this process uses {path}", module=str(path)) from error
            raise ProviderAbsent(f"{path} does not load as a PKCS#11 module: {error}", module=str(path)) from error

    def refresh(self) -> None:
        """Start the module anew in a process that was forked off since the last call; to be called before each use."""
        if self._pid != os.getpid():
            self.restart()

    def restart(self) -> None:
        """End every session of this process and initialise the module again; logins open their own when used."""
        with self.lock, translate_token_errors(str(self.path)):
            with contextlib.suppress(p11.PKCS11Error):  # a module that noticed the fork itself is not initialised
                self._library.finalize()
            self._library.initialize()
            self._pid = os.getpid()
            self.epoch += 1

    def find_token(self, label: str, serial: bytes | None) -> pkcs11.Token:
        """Return the one token called ``label``; raise ``keys.token.missing``, which lists those that are there.

        Modules look for tokens when they start: where none is found and nobody is logged in, the module starts again.
        SoftHSM may miss a token that another process is just logging in to: they are looked for a few times.
        """
        for attempt in range(_STARTS):
            found = self._tokens()
            matching = [token for token in found if _matches(token, label, serial)]
            if matching or attempt == _STARTS - 1:
                break
            time.sleep(attempt * _PAUSE_S)
            if not any(login.is_connected for login in self.logins.values()):
                self.restart()
        if len(matching) == 1:
            return matching[0]
        shown = ", ".join(repr(token.label) for token in found[:_MAX_SHOWN_TOKENS]) or "none"
        if matching:
            raise TokenMissing(f"{len(matching)} tokens are called {label!r}: add serial= to the URI", token=label)
        named = f" with serial {serial.decode(errors='replace')}" if serial else ""
        raise TokenMissing(f"{self.path} has no token {label!r}{named}; it has: {shown}", token=label)

    def _tokens(self) -> list[pkcs11.Token]:
        tokens = []
        with translate_token_errors(str(self.path)):
            for slot in self._library.get_slots(token_present=True):
                with contextlib.suppress(p11.TokenNotPresent, p11.TokenNotRecognised, p11.GeneralError):
                    token = slot.get_token()
                    if token.flags & _FLAGS.TOKEN_INITIALIZED:
                        tokens.append(token)
        return tokens


class TokenLogin:
    """One login of this process to a token, shared by every store that showed the same PIN.

    PKCS#11 knows one login a process and token: once logged in, a second PIN would not be looked at. It is compared
    with the first one here.
    """

    def __init__(self, module: Pkcs11Module, token: pkcs11.Token, pin: Secret | None) -> None:
        self.generation = 0  # counts the sessions; object handles belong to one of them
        self.label, self.serial = token.label, token.serial
        self._module, self._pin = module, pin
        self._users = 1
        self._epoch = module.epoch
        self._session: pkcs11.Session | None = None
        self._refused = False

    @property
    def is_connected(self) -> bool:
        return self._session is not None and self._epoch == self._module.epoch

    @property
    def what(self) -> str:
        return f"token {self.label!r}"

    def run(self, act: Callable[[pkcs11.Session], Result]) -> Result:
        """Return what ``act`` makes of the session, alone in the module.

        A lost session (token pulled out and back, process forked) is opened again, once.
        """
        with self._module.lock, translate_token_errors(self.what):
            try:
                return act(self._ready())
            except _LOST:
                self._drop()
            return act(self._ready())

    def connect(self, *, first: bool, by_person: bool) -> None:
        """Open a session and log in with one try.

        A failure that the token does not count as a wrong PIN is tried again.
        Raises ``keys.pin.refused`` (with how near the token is to locking itself), ``keys.pin.locked``. The last try is
        not spent on a PIN from a file: a restarting service must not be what locks a token.
        """
        token = self._module.find_token(self.label, self.serial)
        pin = pkcs11.types.PROTECTED_AUTH if self._pin is None else pin_text(self._pin)
        self._require_try_left(token, by_person=by_person)
        for attempt in range(_LOGINS):
            try:
                self._session = self._log_in(token, pin, first=first)
                break
            except (p11.PinIncorrect, p11.PinInvalid, p11.PinLenRange) as error:
                self.refuse_for_ever()
                raise self.refusal() from error
            except (p11.GeneralError, p11.FunctionFailed):
                token = self._module.find_token(self.label, self.serial)
                if attempt == _LOGINS - 1 or token.flags & _PIN_COUNTED:
                    raise
                time.sleep(_PAUSE_S)  # another process was just writing the token's files (SoftHSM)
        self.generation += 1
        self._epoch = self._module.epoch

    def _log_in(self, token: pkcs11.Token, pin: object, *, first: bool) -> pkcs11.Session:
        writable = not token.flags & _FLAGS.WRITE_PROTECTED
        try:
            return token.open(rw=writable, user_pin=pin, attribute_mapper=_mapper())
        except p11.UserAlreadyLoggedIn as error:
            if first:
                raise ProviderFailed(
                    f"{self.what}: other code in this process is logged in, so that no PIN can be checked",
                    token=self.label,
                ) from error
            return token.open(rw=writable, attribute_mapper=_mapper())

    def require_try_left(self, *, by_person: bool) -> None:
        """Return if the token may be asked about a PIN; raise ``keys.pin.locked``, ``keys.pin.refused``."""
        self._require_try_left(self._module.find_token(self.label, self.serial), by_person=by_person)

    def _require_try_left(self, token: pkcs11.Token, *, by_person: bool) -> None:
        if token.flags & _FLAGS.USER_PIN_LOCKED:
            raise PinLocked(f"{self.what} is locked", token=self.label)
        if token.flags & _FLAGS.USER_PIN_FINAL_TRY and not by_person:
            raise PinRefused(f"{self.what} has one try left; log in by hand once with the right PIN", token=self.label)

    def refusal(self) -> TidegateError:
        """Return the error for a PIN that the token just refused, with what its flags say about the tries left."""
        flags = self._module.find_token(self.label, self.serial).flags
        if flags & _FLAGS.USER_PIN_LOCKED:
            return PinLocked(f"{self.what} refused the PIN and is locked now", token=self.label)
        left = "it does not say how many tries are left"
        if flags & _FLAGS.USER_PIN_FINAL_TRY:
            left = "one try is left"
        elif flags & _FLAGS.USER_PIN_COUNT_LOW:
            left = "tries were used up already"
        return PinRefused(f"{self.what} refused the PIN; {left}", token=self.label, left=left)

    def refuse_for_ever(self) -> None:
        """Forget a PIN that was refused: it is never tried again."""
        self._refused = True
        self._forget()
        if not any(login.is_connected for login in self._module.logins.values()):
            self._module.restart()  # the library leaves the session open that the PIN was refused in

    def join(self, pin: Secret | None) -> None:
        """Let another store use this login; raise ``keys.pin.refused`` if it brings another PIN."""
        same = (
            hmac.compare_digest(pin.view(), self._pin.view())
            if pin is not None and self._pin is not None
            else pin is self._pin
        )
        if not same:
            raise PinRefused(f"{self.what} is open in this process with another PIN", token=self.label)
        self._users += 1

    def change_pin(self, new: Secret) -> None:
        """Give the token another PIN; this login goes on with it. Raises ``keys.pin.refused``, ``keys.pin.missing``."""
        old = self._pin
        if old is None:
            raise PinMissing(f"{self.what} takes its PIN on a keypad of its own: change it there", token=self.label)
        self.run(lambda session: session.set_pin(pin_text(old), pin_text(new)))
        self._pin = Secret(bytes(new.view()))
        old.wipe()

    def describe(self) -> dict[str, str]:
        """Return what the token says of itself."""
        with self._module.lock, translate_token_errors(self.what):
            token = self._module.find_token(self.label, self.serial)
            texts = {
                "label": token.label,
                "manufacturer": token.manufacturer_id,
                "model": token.model,
                "serial": token.serial.decode(errors="replace"),
                "firmware": ".".join(map(str, token.firmware_version)),
            }
        return {name: text.strip("\0 ") for name, text in texts.items()}

    def leave(self) -> None:
        """Log out when the last store leaves."""
        with self._module.lock:
            self._users -= 1
            if not self._users:
                self._drop()
                self._forget()

    def _forget(self) -> None:
        if self._module.logins.get((self.label, self.serial)) is self:
            del self._module.logins[self.label, self.serial]
        if self._pin is not None:
            self._pin.wipe()

    def _ready(self) -> pkcs11.Session:
        self._module.refresh()
        if self._refused:
            raise PinRefused(f"{self.what} refused the PIN before; it is not tried again", token=self.label)
        if not self.is_connected:
            self._session = None
            self.connect(first=False, by_person=False)
        if self._session is None:
            raise ProviderFailed(f"{self.what} gave no session", token=self.label)
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None and self._epoch == self._module.epoch:
            with contextlib.suppress(p11.PKCS11Error):
                self._module.refresh()
                if self._epoch == self._module.epoch:  # else it is a session of the process that we were forked from
                    session.close()


def load_module(path: Path) -> Pkcs11Module:
    """Return the module at ``path``, loaded once a process.

    Raises ``keys.provider.absent``, and ``base.permissions.unsafe`` for a module that others can rewrite: it runs in
    this process and sees the PIN.
    """
    real = path.resolve()
    if not path.is_absolute() or not real.is_file():
        raise ProviderAbsent(f"there is no PKCS#11 module at {path}", module=str(path))
    with translate_os_errors(real):
        status = real.stat()
    if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022:
        raise UnsafePermissions(f"{real} can be rewritten by others", path=str(real))
    with _MODULES_LOCK:
        if str(real) not in _MODULES:
            _MODULES[str(real)] = Pkcs11Module(real)
        return _MODULES[str(real)]


def open_login(
    module: Pkcs11Module, label: str, serial: bytes | None, ask_pin: Callable[[bool], tuple[Secret | None, bool]]
) -> TokenLogin:
    """Return a login to the token.

    ``ask_pin`` is told whether the token has a keypad of its own and returns the PIN (none for the keypad) and whether
    a person gave it; it is not asked where there is no such token.
    """
    with module.lock:
        module.refresh()
        flags = module.find_token(label, serial).flags
    pin, by_person = ask_pin(bool(flags & _FLAGS.PROTECTED_AUTHENTICATION_PATH))
    with module.lock, translate_token_errors(f"token {label!r}"):
        token = module.find_token(label, serial)
        login = module.logins.get((token.label, token.serial))
        if login is not None:
            try:
                login.join(pin)
            finally:
                if pin is not None:
                    pin.wipe()
            return login
        login = TokenLogin(module, token, pin)
        try:
            login.connect(first=True, by_person=by_person)
        except TidegateError:
            login.leave()
            raise
        module.logins[token.label, token.serial] = login
        return login


def open_apart(session: pkcs11.Session) -> contextlib.closing[pkcs11.Session]:
    """Return another session on the same token, for one operation; it is logged in as ``session`` is."""
    return contextlib.closing(session.token.open(attribute_mapper=_mapper()))


def _matches(token: pkcs11.Token, label: str, serial: bytes | None) -> bool:
    return token.label == label and serial in (None, token.serial)


def _mapper() -> AttributeMapper:
    """Return how attributes are read: other tools' labels may be no UTF-8, vendors' key types no member of the enum."""
    mapper = AttributeMapper()
    mapper.register_handler(
        pkcs11.Attribute.LABEL, lambda text: str(text).encode(), lambda raw: raw.decode(errors="replace")
    )
    pack, _ = handle_ulong
    mapper.register_handler(pkcs11.Attribute.KEY_TYPE, lambda kind: pack(int(kind)), _key_type)
    return mapper


def _key_type(raw: bytes) -> int:
    number = int.from_bytes(raw, sys.byteorder)
    return KeyType(number) if number in KeyType.__members__.values() else number


def pin_text(pin: Secret) -> str:
    """Return a PIN as the library wants it, a copy that nobody can wipe; raise ``keys.pin.refused`` for no UTF-8."""
    try:
        return bytes(pin.view()).decode()
    except UnicodeDecodeError as error:
        raise PinRefused("a PIN is text in UTF-8") from error


def _before_fork() -> None:
    """Wait until no thread is inside a module: its locks would stay closed in the child for ever."""
    _MODULES_LOCK.acquire()
    for module in _MODULES.values():
        module.lock.acquire()


def _after_fork() -> None:
    for module in _MODULES.values():
        module.lock.release()
    _MODULES_LOCK.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
