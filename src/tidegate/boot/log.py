"""The boot log: one JSON line an entry, in memory that outlives a reset but not a power cut (as ramoops does).

Touches: one file in the run folder, appended by the first and the second stage, read by the agent, which turns it
into events.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tidegate.base.durable import read_file_bounded, translate_os_errors
from tidegate.boot.errors import StateMalformed
from tidegate.boot.measure import Began, BootLogEntry

MAX_LOG_BYTES = 262_144  # 32 payloads and both slots refused leave a hundredth of it
_DECODER: msgspec.json.Decoder[BootLogEntry] = msgspec.json.Decoder(BootLogEntry)


class BootLog:
    """The log in ``folder``; call it with an entry to append."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "boot.jsonl"

    def __call__(self, entry: BootLogEntry) -> None:
        """Append one entry. A board that resets without end must not fill its memory: its oldest boots give way."""
        with translate_os_errors(self.path):
            if isinstance(entry, Began) and self.path.exists() and self.path.stat().st_size > MAX_LOG_BYTES // 2:
                self.path.unlink()
            with self.path.open("ab") as stream:
                stream.write(msgspec.json.encode(entry) + b"\n")

    def read(self) -> list[BootLogEntry]:
        """Return every entry since power came on (or the log gave way); raise ``boot.state.malformed``."""
        if not self.path.exists():
            return []
        lines = read_file_bounded(self.path, limit_bytes=MAX_LOG_BYTES).splitlines()
        try:
            return [_DECODER.decode(line) for line in lines]
        except msgspec.MsgspecError as error:
            raise StateMalformed(f"{self.path}: {error}") from error
