"""The folder that tells the story of the firewall: what was confirmed, what waits, whether the device is locked down.

Touches: the state folder.

``pending.nft`` is its hinge. It is written before a change and renamed exactly once: to ``confirmed.nft`` by a
confirmation, to ``rolling-back.nft`` by a rollback, to ``rolled-back.nft`` by a lockdown. A rename succeeds for one of
them only, whichever processes they run in. What goes with it (``*.json``, ``*-lockdown.nft``) follows afterwards and
names the hinge's digest, so that a power cut between two renames is noticed, and finished by ``settle``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tidegate.base.digest import sha256
from tidegate.base.durable import (
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
)
from tidegate.base.errors import TidegateError
from tidegate.firewall import guard
from tidegate.firewall.errors import ChangePending, StateCorrupt

if TYPE_CHECKING:
    from tidegate.firewall.section import FirewallSection

DEFAULT_STATE = Path("/var/lib/tidegate/firewall")
CONFIRMED = "confirmed.nft"
LOCKDOWN = guard.LOCKDOWN  # the prepared ruleset that goes with confirmed.nft
PENDING_LOCKDOWN = "pending-lockdown.nft"
CONFIRMED_STORY, PENDING_STORY = "confirmed.json", "pending.json"
LOCKED = guard.LOCKED
APPLY_LOCK = "apply.lock"
APPLIER_WAIT_S = 2.0  # an apply takes a fraction of that; one that hangs keeps no lockdown away
MAX_STATE_BYTES = 64 << 20  # three million peers; the set budget ends long before
GUARD_END_S = 2.0  # it looks every tenth of a second whether its change was confirmed
_HEADER = "# tidegate firewall ruleset, sha256 "


UNKNOWN = msgspec.Raw(b"null")


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a ruleset besides its text."""

    nft_sha256: str  # of the text that it goes with
    lockdown_sha256: str
    effective: str  # the digest of the kernel's listing right after it was loaded
    locked: bool = False  # loaded was its lockdown form
    section: msgspec.Raw = UNKNOWN  # FirewallSection, as JSON
    sysctls: Mapping[str, str] = msgspec.field(default_factory=dict)
    namespace: str = ""  # in which they were set


class Lockdown(msgspec.Struct, frozen=True, kw_only=True):
    """A lockdown that is on. ``token`` tells it from an earlier one for its timer."""

    reason: str
    token: str
    since_s: float  # by the system's clock, for people
    for_s: float | None = None
    effective: str | None = None


def load_section_in_force(state_dir: Path = DEFAULT_STATE) -> FirewallSection | None:
    """Return the section that is in force, in mode ``lockdown`` while the device is locked down.

    ``None`` when nothing is in force, and when the story does not go with the ruleset ("model unknown"). Raises
    ``base.permissions.unsafe``.
    """
    from tidegate.firewall.section import Mode

    section = _decode_section(load_story(state_dir))
    if section is None or load_lockdown(state_dir) is None:
        return section
    return msgspec.structs.replace(section, mode=Mode.LOCKDOWN)


def load_section_confirmed(state_dir: Path = DEFAULT_STATE) -> FirewallSection | None:
    """Return the section that was confirmed last, whatever waits or is locked down; ``None`` where not known."""
    return _decode_section(_read_story(state_dir, CONFIRMED_STORY, CONFIRMED))


def load_expected_digest(state_dir: Path = DEFAULT_STATE) -> str | None:
    """Return what ``effective_digest`` was right after the ruleset in force was loaded; ``None`` where not known."""
    lockdown = load_lockdown(state_dir)
    if lockdown is not None and not (state_dir / guard.PENDING).exists():
        return lockdown.effective
    story = load_story(state_dir)
    return story.effective if story is not None and story.locked is (lockdown is not None) else None


def note_effective(state_dir: Path, effective: str) -> None:
    """Store the digest of what the ruleset in force has become in the kernel, for ``load_expected_digest``."""
    if load_expected_digest(state_dir) == effective:
        return
    is_pending = (state_dir / guard.PENDING).exists()
    lockdown, story = load_lockdown(state_dir), load_story(state_dir)
    if lockdown is not None and not is_pending:
        write_lockdown(state_dir, msgspec.structs.replace(lockdown, effective=effective))
    elif story is not None:
        name = PENDING_STORY if is_pending else CONFIRMED_STORY
        write_story(state_dir, name, msgspec.structs.replace(story, effective=effective, locked=lockdown is not None))


def load_lockdown(state_dir: Path = DEFAULT_STATE) -> Lockdown | None:
    """Return the lockdown that is on. A mark that cannot be read still locks; raises ``base.permissions.unsafe``."""
    if not (state_dir / LOCKED).exists():
        return None
    require_private(state_dir)
    try:
        return msgspec.json.decode(read_file_bounded(state_dir / LOCKED, limit_bytes=MAX_STATE_BYTES), type=Lockdown)
    except msgspec.DecodeError:
        return Lockdown(reason="unknown", token="", since_s=0.0)


def load_story(state_dir: Path) -> Story | None:
    """Return the story of the ruleset in force: of the change that waits, else of what was confirmed."""
    if not state_dir.exists():
        return None
    require_private(state_dir)
    if (state_dir / guard.PENDING).exists():
        return _read_story(state_dir, PENDING_STORY, guard.PENDING)
    confirmed = _read_story(state_dir, CONFIRMED_STORY, CONFIRMED)
    return confirmed or _read_story(state_dir, PENDING_STORY, CONFIRMED)


def write_story(state_dir: Path, name: str, story: Story) -> None:
    """Store ``story``, durably."""
    write_file_atomic(state_dir / name, msgspec.json.encode(story), mode=0o600)


def write_lockdown(state_dir: Path, lockdown: Lockdown) -> None:
    """Mark the device as locked down, durably."""
    write_file_atomic(state_dir / LOCKED, msgspec.json.encode(lockdown), mode=0o600)


def settle(state_dir: Path) -> None:
    """Finish the renames that follow a confirmation, after a power cut between them."""
    if (state_dir / guard.PENDING).exists() or not (state_dir / PENDING_STORY).exists():
        return
    story = _read_story(state_dir, PENDING_STORY, CONFIRMED)
    if story is None:
        return  # of a change that was undone
    with translate_os_errors(state_dir), contextlib.suppress(FileNotFoundError):
        if read_sha256(state_dir / PENDING_LOCKDOWN) == story.lockdown_sha256:
            (state_dir / PENDING_LOCKDOWN).rename(state_dir / LOCKDOWN)
        (state_dir / PENDING_STORY).rename(state_dir / CONFIRMED_STORY)
        sync_folder(state_dir)


@contextlib.contextmanager
def exclusive(state_dir: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the folder for one applying process; ``firewall.commit.pending`` if another one is at work for ``wait_s``.

    The guard never takes this lock: a process that hangs while it applies must not stop the rollback.
    """
    with translate_os_errors(state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(state_dir)  # what lies here is loaded into the kernel: nobody else may write it
    with translate_os_errors(state_dir / APPLY_LOCK):
        lock = os.open(state_dir / APPLY_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                raise ChangePending("another process is applying a policy")
            time.sleep(0.01)
        settle(state_dir)
        yield
    finally:
        # Not by closing alone: a process that another thread is starting right now holds a copy until its exec.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def refuse_pending(state_dir: Path) -> None:
    """Return once no change waits and no guard of an earlier one is left, which would take a new change for its own.

    Raises ``firewall.commit.pending``.
    """
    for name in (guard.PENDING, guard.ROLLING_BACK):
        if (state_dir / name).exists():
            raise ChangePending(f"an unconfirmed change lies in {state_dir}", path=str(state_dir))
    await_old_guard(state_dir)


def await_old_guard(state_dir: Path) -> None:
    """Return once the guard of a decided change has noticed and ended; raises ``firewall.commit.pending``."""
    deadline = time.monotonic() + GUARD_END_S
    while guard.guard_lives(str(state_dir)):
        if time.monotonic() > deadline:
            raise ChangePending("the guard of an earlier change does not end", path=str(state_dir))
        time.sleep(guard.POLL_S / 5)


def write_volatile(path: Path, text: str) -> None:
    """Write a file that nobody reads after a reboot, and so need not survive a power cut."""
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)


def seal(text: str) -> bytes:
    """Return ``text`` behind a line with its digest."""
    return f"{_HEADER}{sha256_of(text)}\n{text}".encode()


def unseal(path: Path) -> str:
    """Return the text that ``seal`` stored; guards against decay, not against whoever may write the folder.

    Raises ``firewall.state.corrupt``, ``base.storage.*``.
    """
    header, _, text = read_file_bounded(path, limit_bytes=MAX_STATE_BYTES).decode(errors="replace").partition("\n")
    if header != _HEADER + sha256_of(text):
        raise StateCorrupt(f"{path} does not match its digest", path=str(path))
    return text


def sha256_of(text: str) -> str:
    """Return the digest that a sealed text carries."""
    return sha256(text.encode()).hexdigest()


def read_sha256(path: Path) -> str | None:
    """Return the digest in a sealed text's first line, unchecked; ``None`` without one."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(len(_HEADER) + 65).decode(errors="replace")
    except OSError:
        return None
    return line.strip().removeprefix(_HEADER) if line.startswith(_HEADER) else None


def _read_story(state_dir: Path, name: str, text: str) -> Story | None:
    """Return the story if there is a readable one that goes with the text."""
    try:
        story = msgspec.json.decode(read_file_bounded(state_dir / name, limit_bytes=MAX_STATE_BYTES), type=Story)
    except (TidegateError, msgspec.DecodeError):
        return None
    return story if story.nft_sha256 == read_sha256(state_dir / text) else None


def _decode_section(story: Story | None) -> FirewallSection | None:
    from tidegate.firewall.section import FirewallSection

    if story is None or bytes(story.section) == bytes(UNKNOWN):
        return None
    try:
        return msgspec.json.decode(story.section, type=FirewallSection)
    except msgspec.DecodeError:  # written by another version
        return None


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
