"""The story from the first key to the last piece of evidence.

Touches: a work folder under the temporary folder, the lab's namespaces; all gone at the end unless asked to stay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.errors import NotRoot, TidegateError
from tidegate.base.program import find_program
from tidegate.demo.board import RUN_PARENT, RUN_PREFIX, Board
from tidegate.demo.booting import tell_boot
from tidegate.demo.certifying import tell_keys
from tidegate.demo.defending import required_programs, tell_attacks, tell_policy
from tidegate.demo.keeping import tell_evidence, tell_vault
from tidegate.demo.lab import build_lab, delete_lab
from tidegate.demo.making import tell_factory, tell_maker
from tidegate.demo.report import Report
from tidegate.demo.updating import tell_fallback, tell_update
from tidegate.demo.witness import EventReader, OperatorShell
from tidegate.firewall.nft import require_kernel

WORK_PREFIX = "tidegate-demo-"
_PROGRAMS = (
    "ip",
    "mksquashfs",
    "veritysetup",
    "busybox",
    "mkfs.ext4",
    "mount",
    "umount",
    "unshare",
    "nsenter",
    "openssl",
    "softhsm2-util",
    "swtpm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for."""

    prefix: str = "tg"
    stepping: bool = False
    keep: bool = False
    quiet: bool = False


def run_story(options: DemoOptions) -> tuple[Report, TidegateError | None]:
    """Tell the whole story; return the record and what ended it early, if anything did.

    Before anything is made, what the story needs is checked: root (``base.privilege.missing``), every program
    (``base.program.missing``), nftables (``firewall.kernel.no-nftables``), free namespace names
    (``testing.netns.busy``); these are raised.
    """
    _check_machine()
    report = Report(quiet=options.quiet, stepping=options.stepping)
    with ExitStack() as stack:
        lab_stack = stack.enter_context(ExitStack())
        lab = build_lab(options.prefix, lab_stack)
        work = Path(tempfile.mkdtemp(prefix=f"{WORK_PREFIX}{options.prefix}-"))
        lab_stack.callback(shutil.rmtree, work, ignore_errors=True)
        failure = None
        board: Board | None = None
        try:
            bench = tell_maker(report, work)
            storage, device = tell_factory(report, bench)
            board = Board(storage, lab.device, work / "console")
            lab_stack.callback(board.power_off)
            reader = EventReader(board)
            shell = OperatorShell(work, board, lab.operator)
            shell.prepare()
            tell_boot(report, bench, board, lab, reader)
            board.power_on()
            tell_policy(report, bench, board, lab, shell, reader)
            tell_attacks(report, board, lab, reader)
            tell_update(report, bench, board, lab, reader)
            tell_fallback(report, bench, board, lab, reader, shell)
            tell_vault(report, board)
            tell_keys(report, board, lab, work)
            tell_evidence(report, board, reader, device.event_key, work)
        except TidegateError as error:
            failure = error
        if options.keep:
            lab_stack.pop_all()  # never closed: everything stays; the caller says how to look around and to clean up
            report.kept = work
    return report, failure


def clean_up(prefix: str) -> list[str]:
    """Remove what a demo with ``keep`` left: processes, namespaces, folders; return what there was."""
    left = delete_lab(prefix)
    for folder in Path(tempfile.gettempdir()).glob(f"{WORK_PREFIX}{prefix}-*"):
        left.append(str(folder))
        shutil.rmtree(folder)
    for folder in RUN_PARENT.glob(f"{RUN_PREFIX}{prefix}-device-*"):
        left.append(str(folder))
        shutil.rmtree(folder)
    return left


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise NotRoot("the demo makes namespaces and mounts", capability="root")
    for name in _PROGRAMS:
        find_program(name)
    required_programs()
    require_kernel()
