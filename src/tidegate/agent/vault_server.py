"""The server of the vault's process: connections, refusals told to the agent, the end.

Touches: the vault, its socket, standard input and output. ``vaultd.py`` says what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from tidegate.agent.api import Service, serve_lines
from tidegate.agent.errors import UnexpectedFailure
from tidegate.agent.home import VAULT_SOCKET, DeviceHome
from tidegate.agent.vault_confine import confine_vault
from tidegate.agent.vault_errors import VaultDenied, VaultRequestMalformed
from tidegate.agent.vault_grants import Grants, plan_grants
from tidegate.agent.vault_requests import MAX_LINE_BYTES, name_of, parse_request
from tidegate.agent.vault_service import VaultService
from tidegate.base.errors import Rejected, TidegateError
from tidegate.vault.machine import Attitude, MachineRules
from tidegate.vault.section import VaultSection
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

VAULT_KEY = "vault"
IDLE_S = 60.0
MAX_CONNECTIONS, MAX_CONNECTIONS_OF_USER = 64, 8
MAX_CONFIG_BYTES = 64 << 20  # 64 grants of 512 names of 1,024 characters
MAX_TOLD_PER_S = 5  # refusals of one user: each is a record on the flash, and a flood of one hides those of others
MAX_TOLD_CHARACTERS = 500  # of a text: a line is whole in a pipe below PIPE_BUF


class Reports:
    """Lines for the agent. Nobody waits for it: what finds no room is lost, and how much of it is told next."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._told: Counter[int] = Counter()
        self._second = 0
        self._left_out = 0
        os.set_blocking(descriptor, False)

    def put(self, kind: str, **fields: object) -> None:
        """Write one line, whole or not at all."""
        cut = {name: text[:MAX_TOLD_CHARACTERS] if isinstance(text, str) else text for name, text in fields.items()}
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps({"event_type": kind, **cut}).encode() + b"\n")

    def refuse(self, user: int, operation: str, error: TidegateError) -> None:
        """Tell of a refusal, some a second for each user. Names of items stay here: they are secret too."""
        second = int(time.monotonic())
        if second != self._second:
            self._second = second
            self._told.clear()
        self._told[user] += 1
        if self._told[user] > MAX_TOLD_PER_S:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        self.put("refused", user=_user_name(user), operation=operation, code=error.code, left_out=left_out)


class Vaultd:
    """Serves an open vault until it is stopped, or until its storage fails: the next opening recovers."""

    def __init__(self, vault: Vault, grants: Grants, reports: Reports) -> None:
        self._vault, self._grants, self._reports = vault, grants, reports
        self._service = VaultService(vault, grants)
        self._one = ThreadPoolExecutor(max_workers=1)  # requests in the order in which they came
        self._stop = asyncio.Event()

    async def run(self, path: Path) -> None:
        """Serve at ``path``; every user may connect, and who he is the kernel says."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.set_exception_handler(self._note_defect)
        service = Service(
            admit=self._admit,
            mode=0o666,
            request_bytes=MAX_LINE_BYTES,
            timeout_s=IDLE_S,
            requests=sys.maxsize,
            connections=MAX_CONNECTIONS,
            connections_of_user=MAX_CONNECTIONS_OF_USER,
        )
        server = await serve_lines(path, self._answer, service)
        self._reports.put("ready")
        try:
            await self._stop.wait()
        finally:
            server.close()
            path.unlink(missing_ok=True)
            await asyncio.to_thread(self._one.shutdown, cancel_futures=True)

    def _note_defect(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Tell of a defect beside the requests by its type alone: its text could hold what is secret."""
        failure = UnexpectedFailure(f"connection: {type(context.get('exception')).__name__}")
        self._reports.refuse(0, "connection", failure)

    def _admit(self, user: int) -> None:
        try:
            self._grants.require_any(user)
        except VaultDenied as error:
            self._reports.refuse(user, "connect", error)
            raise

    async def _answer(self, line: bytes, user: int) -> bytes:
        request = parse_request(line)
        doing = asyncio.get_running_loop().run_in_executor(self._one, self._service.answer, request, user)
        await asyncio.wait([doing])
        error = doing.exception()
        if self._vault.table.is_broken:
            self._stop.set()
        if error is None:
            return doing.result()
        if not isinstance(error, TidegateError):  # the outermost loop: an event; of what was held nothing is told
            error = UnexpectedFailure(f"{name_of(request)}: {type(error).__name__}")
        # denied, or something in the vault is not what was written, or a defect
        if isinstance(error, Rejected | UnexpectedFailure) and not isinstance(error, VaultRequestMalformed):
            self._reports.refuse(user, name_of(request), error)
        raise error


def run(home: DeviceHome) -> int:
    """Serve the vault of ``home`` until asked to stop; return the exit status."""
    reports = Reports(sys.stdout.fileno())
    try:
        section = _read_section()
        with contextlib.closing(home.open_keys()) as keys:
            rules = MachineRules(swap=Attitude(section.swap.value), memory=Attitude(section.memory.value))
            with Vault.open(home.vault, KeyStoreUnlocker(keys, VAULT_KEY), machine=rules) as vault:
                is_locked = confine_vault()
                reports.put("opened", vault=vault.vault_id, warnings=list(vault.warnings), memory_locked=is_locked)
                return _serve(vault, section, reports, home.run / VAULT_SOCKET)
    except TidegateError as error:
        reports.put("refused", user="root", operation="open", code=error.code, left_out=0)
        reports.put("error", code=error.code, message=error.message)
        return error.exit_status


def _serve(vault: Vault, section: VaultSection, reports: Reports, path: Path) -> int:
    grants, unknown = plan_grants(section, _user_number)
    for name in unknown:
        reports.put("unknown-user", grant=name)
    asyncio.run(Vaultd(vault, grants, reports).run(path))
    if vault.table.is_broken:
        reports.put("error", code="vault.folder.failed", message="the storage failed under the vault")
        return 4
    return 0


def _read_section() -> VaultSection:
    line = sys.stdin.buffer.readline(MAX_CONFIG_BYTES)
    try:
        return msgspec.json.decode(line, type=VaultSection)
    except msgspec.DecodeError as error:
        raise VaultRequestMalformed(f"standard input has no section: {error}") from error


def _user_number(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
