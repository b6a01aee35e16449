"""``tidegate-keyd``: the one process that talks to a token, for everybody whom its grants name.

Touches: its Unix socket, its file of grants, standard error (one JSON object a line for everything refused or lost).
Private keys are in its child (``keyd_worker.py``); who a client is, the kernel says. docs/keys.md has the how-to.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import json
import os
import pwd
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

from tidegate.base.durable import read_file_bounded, translate_os_errors
from tidegate.base.errors import TidegateError, UnsafePermissions
from tidegate.keys.errors import GrantRefused, KeydBusy, KeydConfigInvalid, KeydMessageMalformed
from tidegate.keys.keyd_channel import receive_message, send_message
from tidegate.keys.keyd_grants import MAX_CONFIG_BYTES, Grants, KeydFile, Limits, Peer, parse_config
from tidegate.keys.keyd_harden import become, harden
from tidegate.keys.keyd_wire import Operation, encode_answer, encode_error, parse_reply, parse_request
from tidegate.keys.keyd_worker import Worker, hold_pins
from tidegate.keys.uri import parse_key_uri

_SO_PEERGROUPS = 59
_MAX_GROUPS = 256  # a peer in more of them is taken to be in none but his own
_BACKLOG = 64
_PAUSE_S = 0.1
_LINES_PER_SECOND = 100
_MAX_ADDRESS_BYTES = 107  # unix(7)
_ENDS = (signal.SIGTERM, signal.SIGINT)

Report = Callable[..., None]


class Keyd:
    """The server: a thread a client, one worker for all of them."""

    def __init__(self, listener: socket.socket, worker: Worker, grants: Grants, limits: Limits, report: Report) -> None:
        self._listener = listener
        self._worker = worker
        self._grants = grants
        self._limits = limits
        self._report = report
        self._lock = threading.Lock()
        self._clients: Counter[int] = Counter()
        self._paces: dict[int, _Pace] = {}
        self._turns = _Turns()
        self._lines = _Lines()
        self._stopping = False
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)

    @property
    def wakes(self) -> int:
        """Return the descriptor for ``signal.set_wakeup_fd``, so that no signal right before ``run`` waits is lost."""
        return self._wakes.fileno()

    def close(self) -> None:
        """Close what woke it; the listener is its owner's."""
        self._woken.close()
        self._wakes.close()

    def run(self) -> None:
        """Serve until ``stop``."""
        self._listener.setblocking(False)
        waiting = select.poll()
        for one in (self._listener, self._woken):
            waiting.register(one, select.POLLIN)
        while not self._stopping:
            waiting.poll()
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:  # woken, by ``stop``
                continue
            except OSError:  # shut down, by ``stop``; or no descriptor is left until some client goes
                if not self._stopping:
                    time.sleep(_PAUSE_S)
                continue
            peer = peer_of(connection)
            refusal = self._admit(peer)
            if refusal is not None:
                self._refuse(peer, refusal, None)
                self._say(connection, refusal)
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection, peer), daemon=True).start()
            except RuntimeError:  # the system gives this process no more threads
                self._leave(peer)
                self._say(connection, KeydBusy("the key process has no thread for another client"))
                connection.close()

    def stop(self) -> None:
        """Take no more clients; ``run`` returns."""
        self._stopping = True
        for step in (lambda: self._wakes.send(b"\0"), lambda: self._listener.shutdown(socket.SHUT_RDWR)):
            with contextlib.suppress(OSError):  # woken often enough, or it has ended already
                step()

    def _admit(self, peer: Peer) -> TidegateError | None:
        """Return why the peer is not served: who is granted nothing shall not take others' places either."""
        if not self._grants.of(peer):
            return GrantRefused(f"user {peer.uid} has no grants here", uid=peer.uid)
        with self._lock:
            is_full = self._clients.total() >= self._limits.clients
            if is_full or self._clients[peer.uid] >= self._limits.clients_per_user:
                return KeydBusy("the key process has as many clients as it may have")
            self._clients[peer.uid] += 1
            self._paces.setdefault(peer.uid, _Pace(self._limits.requests_per_second))
            return None

    def _serve(self, connection: socket.socket, peer: Peer) -> None:
        try:
            with connection, contextlib.suppress(OSError):  # silent, slow or gone: no more clients of ours
                while self._serve_one(connection, peer):
                    pass
        finally:
            self._leave(peer)

    def _leave(self, peer: Peer) -> None:
        with self._lock:
            self._clients[peer.uid] -= 1
            if not self._clients[peer.uid]:
                del self._clients[peer.uid]

    def _serve_one(self, connection: socket.socket, peer: Peer) -> bool:
        """Answer one request; return whether the client may send another."""
        limits = self._limits
        try:
            body = receive_message(connection, idle_s=limits.idle_s, within_s=limits.message_s)
        except KeydMessageMalformed as error:
            self._refuse(peer, error, None)
            self._say(connection, error)
            return False
        if body is None:
            return False
        self._paces[peer.uid].wait()
        send_message(connection, self._answer(body, peer), within_s=limits.message_s)
        return True

    def _answer(self, body: bytes, peer: Peer) -> bytes:
        request = None
        try:
            request = parse_request(body)
            self._grants.require(peer, request)
            with self._paces[peer.uid].one_at_a_time, self._turns.next():
                reply = self._worker.call(body)
            if request.operation is Operation.LIST:
                infos = parse_reply(Operation.LIST, reply)
                return encode_answer(Operation.LIST, self._grants.visible(peer, infos))
        except TidegateError as error:
            self._refuse(peer, error, f"{request.operation.value} {request.name}".rstrip() if request else None)
            return encode_error(error)
        return reply

    def _refuse(self, peer: Peer, error: TidegateError, what: str | None) -> None:
        if not isinstance(error, (GrantRefused, KeydMessageMalformed, KeydBusy)):
            return
        with self._lock:
            left_out = self._lines.ask(peer.uid)
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            self._report("keyd.refused", uid=peer.uid, pid=peer.pid, code=error.code, request=what, **more)

    def _say(self, connection: socket.socket, error: TidegateError) -> None:
        with contextlib.suppress(OSError):
            send_message(connection, encode_error(error), within_s=1.0)


class _Pace:
    """At most ``per_second`` requests of one user; who is faster waits, however many connections he has."""

    def __init__(self, per_second: int) -> None:
        self._gap_s = 1.0 / per_second
        self._burst_s = 1.0
        self._lock = threading.Lock()
        self.one_at_a_time = threading.Lock()  # of a user's requests: he waits behind himself, not others behind him
        self._next = time.monotonic() - self._burst_s

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - self._burst_s) + self._gap_s
            pause_s = self._next - now
        if pause_s > 0:
            time.sleep(pause_s)


class _Lines:
    """How many lines a user may cause in a second: who floods the log hides what others are refused."""

    def __init__(self) -> None:
        self._second = 0
        self._told: Counter[int] = Counter()
        self._left_out = 0

    def ask(self, uid: int) -> int | None:
        """Return how many lines were left out since the last one, or ``None`` where this one is to be left out too."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._told.clear()
        self._told[uid] += 1
        if self._told[uid] > _LINES_PER_SECOND:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


class _Turns:
    """The worker's queue: whoever came first is next, and nobody overtakes (a plain lock lets the last holder)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False

    @contextlib.contextmanager
    def next(self) -> Iterator[None]:
        """Wait for the turn, and give it on at the end."""
        with self._lock:
            mine = threading.Lock() if self._is_taken else None
            if mine is not None:
                mine.acquire()
                self._waiting.append(mine)
            self._is_taken = True
        if mine is not None:
            mine.acquire()  # until the one before us releases it
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().release()
                else:
                    self._is_taken = False


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected, as the kernel recorded it then (SO_PEERCRED, SO_PEERGROUPS)."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        raw = b""
    return Peer(pid=pid, uid=uid, gids=frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))


def listen(path: Path, *, mode: int, uid: int, gid: int) -> socket.socket:
    """Return the listening socket at ``path``, owned and open as said; a dead one that is there is replaced."""
    if len(os.fsencode(path)) > _MAX_ADDRESS_BYTES:
        raise KeydConfigInvalid(f"{path} is too long: a socket's path has at most {_MAX_ADDRESS_BYTES} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _remove_dead(path)
        before = os.umask(0o177)  # nobody connects before owner and mode are what they shall be
        try:
            with translate_os_errors(path):
                listener.bind(str(path))
                _give(path, mode=mode, uid=uid, gid=gid)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _give(path: Path, *, mode: int, uid: int, gid: int) -> None:
    """Set owner and mode of the socket at ``path``, and of nothing else.

    Whoever may write its folder may put a link in its place meanwhile, and would be given what the link points at.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise KeydConfigInvalid(f"{path} was replaced while it was made: who else may write its folder?")
        os.chown(f"/proc/self/fd/{descriptor}", uid, gid)
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)
    finally:
        os.close(descriptor)


def _remove_dead(path: Path) -> None:
    """Remove a socket on which nobody listens any more; raise ``keys.keyd.config`` for anything else."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise KeydConfigInvalid(f"{path} is there already and no socket", path=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            pass
    raise KeydConfigInvalid(f"another process listens at {path}", path=str(path))


def read_config(path: Path) -> tuple[KeydFile, Grants]:
    """Return file and grants; raise ``keys.keyd.config``, or ``base.permissions.unsafe`` if others may write it."""
    with translate_os_errors(path):
        status = path.lstat()
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode):
        raise UnsafePermissions(f"{path} says who may use keys; others may write it", path=str(path))
    return parse_config(
        read_file_bounded(path, limit_bytes=MAX_CONFIG_BYTES),
        name=path.name,
        uid_of=lambda user: pwd.getpwnam(user).pw_uid,
        gid_of=lambda group: grp.getgrnam(group).gr_gid,
    )


def serve(path: Path, report: Report) -> None:
    """Run the key process of the file at ``path`` until SIGTERM."""
    config, grants = read_config(path)
    section = config.keyd
    harden()  # before there is a PIN here; becoming another user undoes a part of it
    uri, pins = hold_pins(parse_key_uri(section.store))
    uid, gid = _identity(section.user)
    group = gid if section.group is None else _group(section.group)
    listener = listen(Path(section.socket), mode=section.mode, uid=uid, gid=group)
    with listener:
        become(uid, gid)
        is_locked = harden()
        worker = Worker(uri, pins, within_s=config.limits.provider_s, report=report)
        keyd = Keyd(listener, worker, grants, config.limits, report)
        try:
            worker.start()
            signal.set_wakeup_fd(keyd.wakes, warn_on_full_buffer=False)
            for number in _ENDS:
                signal.signal(number, lambda *_: keyd.stop())
            report("keyd.ready", socket=section.socket, provider=uri.scheme, memory_locked=is_locked)
            _notify(b"READY=1")
            keyd.run()
        finally:
            worker.stop()
            for number in _ENDS:
                signal.signal(number, signal.SIG_IGN)  # the interpreter's own end would meet the default
            signal.set_wakeup_fd(-1)
            keyd.close()
            with contextlib.suppress(OSError):
                Path(section.socket).unlink()


def _identity(user: str | None) -> tuple[int, int]:
    if user is None:
        return os.getuid(), os.getgid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise KeydConfigInvalid(f"there is no user {user!r}") from error
    return entry.pw_uid, entry.pw_gid


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise KeydConfigInvalid(f"there is no group {name!r}") from error


def _notify(state: bytes) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream, contextlib.suppress(OSError):
            stream.sendto(state, "\0" + address[1:] if address.startswith("@") else address)


def report_line(event: str, **fields: str | int | None) -> None:
    """Write one record to standard error."""
    sys.stderr.write(json.dumps({"event": event, "time_s": int(time.time()), **fields}) + "\n")
    sys.stderr.flush()


def main() -> int:
    """Run ``tidegate-keyd FILE`` and return its exit code, as the command line has them."""
    parser = argparse.ArgumentParser(prog="tidegate-keyd", description="Keep keys for the processes that may use them.")
    parser.add_argument("config", type=Path, help="file with socket, store and grants (deploy/keyd.toml)")
    arguments = parser.parse_args()
    try:
        serve(arguments.config, report_line)
    except TidegateError as error:
        report_line("keyd.failed", code=error.code, message=error.message, advice=error.advice)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
