"""An item as a Python file: seekable, and where it was opened so, writable in place."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from tidegate.vault.editor import Editor
    from tidegate.vault.files import ItemReader, ItemWriter


class _ItemFile(io.RawIOBase):
    """What the three kinds have in common: a name, and something to do at the end."""

    def __init__(self, name: str, mode: str) -> None:
        super().__init__()
        self.name = name
        self.mode = mode
        self._position = 0

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:  # noqa: ARG002  # its form
        raise io.UnsupportedOperation(f"the item is open in mode {self.mode}: it is not read")

    def write(self, data: ReadableBuffer) -> int:  # noqa: ARG002  # its form
        raise io.UnsupportedOperation(f"the item is open in mode {self.mode}: it is not written")

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed item")


class ReadingFile(_ItemFile):
    """An item open for reading in any order; it is authenticated as far as it is read."""

    def __init__(self, name: str, reader: ItemReader) -> None:
        super().__init__(name, "r")
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = _target(offset, whence, self._position, self._reader.header.length_bytes)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._require_open()
        done = self._reader.read_into(self._position, memoryview(buffer).cast("B"))
        self._position += done
        return done

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


class WritingFile(_ItemFile):
    """A new content of an item, in order; it counts when the file is closed without an error, all of it."""

    def __init__(self, name: str, writer: ItemWriter, done: Callable[[ItemWriter], None]) -> None:
        super().__init__(name, "w")
        self._writer = writer
        self._done = done
        self._abandoned = False

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        self._require_open()
        view = memoryview(data).cast("B")
        self._writer.write(view)
        self._position += len(view)
        return len(view)

    def __exit__(self, *error: object) -> None:
        self._abandoned = error[0] is not None
        self.close()

    def abandon(self) -> None:
        """Give up: the item stays as it was."""
        self._abandoned = True
        self.close()

    def __del__(self) -> None:
        self._abandoned = True  # a file that nobody closed was not meant to count
        self.close()

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._abandoned:
                self._writer.abandon()
            else:
                self._done(self._writer)


class EditingFile(_ItemFile):
    """An item open for changing in place; ``flush`` and ``close`` make the changes count, all that wait together."""

    def __init__(self, name: str, mode: str, editor: Editor, done: Callable[[], None]) -> None:
        super().__init__(name, mode)
        self._editor = editor
        self._done = done
        self._position = editor.length_bytes if mode == "a" else 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = _target(offset, whence, self._position, self._editor.length_bytes)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._require_open()
        done = self._editor.read_into(self._position, memoryview(buffer).cast("B"))
        self._position += done
        return done

    def write(self, data: ReadableBuffer) -> int:
        self._require_open()
        view = memoryview(data).cast("B")
        if self.mode == "a":
            self._position = self._editor.length_bytes
        self._editor.write(self._position, view)
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._require_open()
        size = self._position if size is None else size
        self._editor.truncate(size)
        return size

    def flush(self) -> None:
        self._require_open()
        self._editor.flush()

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._editor.forget()
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            self._editor.forget()  # as above: not closed, not meant
        self.close()

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()  # flushes
            finally:
                self._editor.close()
                self._done()


def _target(offset: int, whence: int, position: int, length: int) -> int:
    base = {io.SEEK_SET: 0, io.SEEK_CUR: position, io.SEEK_END: length}.get(whence)
    if base is None:
        raise ValueError("whence is 0, 1 or 2")
    if base + offset < 0:
        raise ValueError("before the beginning of the item")
    return base + offset
