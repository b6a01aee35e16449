"""Rendering: the same result as text for a person or as one JSON document for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence


class Output:
    """Where a command answers; ``as_json`` silences the lines and prints only results."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print one line for a person; nothing in JSON mode."""
        if not self.as_json:
            print(text, flush=True)

    def progress(self, text: str) -> None:
        """Show how far long work is, on standard error, only where a person is watching."""
        if not self.as_json and sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def result(self, document: Mapping[str, object]) -> None:
        """Print the command's answer in JSON mode; call it once, after the lines that say the same in words."""
        if self.as_json:
            print(json.dumps(document, indent=2, default=str), flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows in aligned columns; nothing in JSON mode."""
        texts = [[str(cell) for cell in row] for row in (header, *rows)]
        widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
        for number, row in enumerate(texts):
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            if number == 0:
                self.line("  ".join("-" * width for width in widths))
