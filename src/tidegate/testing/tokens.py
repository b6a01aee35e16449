"""SoftHSM tokens in a folder of their own: PKCS#11 without hardware.

Touches: the folder, and the environment variable ``SOFTHSM2_CONF`` of this process while the helper is open: SoftHSM
reads it at each start of the module. The PINs are no secrets.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.base.program import find_program
from tidegate.keys.uri import KeyUri, parse_key_uri
from tidegate.testing.errors import TokenToolFailed

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
_VARIABLE = "SOFTHSM2_CONF"


class SoftHsm:
    """A folder with tokens; ``with SoftHsm(folder) as hsm: hsm.make_token("device")``.

    The module is loaded once a process and knows one folder at a time: open one helper at a time, close stores first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = MODULE
        self.configuration = folder / "softhsm2.conf"
        self._before = os.environ.get(_VARIABLE)

    def __enter__(self) -> Self:
        (self.folder / "tokens").mkdir(mode=0o700, parents=True)
        self.configuration.write_text(
            f"directories.tokendir = {self.folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ[_VARIABLE] = str(self.configuration)
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = self._before

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment in which other programs see the same tokens."""
        return {**os.environ, _VARIABLE: str(self.configuration)}

    def make_token(self, label: str, *, pin: str = "258036", so_pin: str = "147963") -> Path:
        """Make a token and return the private file with its PIN."""
        tool = [find_program("softhsm2-util"), "--init-token", "--free", "--label", label]
        done = subprocess.run(  # argv may hold these PINs: they are no secrets
            [*tool, "--pin", pin, "--so-pin", so_pin], env=self.environment, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise TokenToolFailed(f"softhsm2-util made no token {label!r}: {done.stderr.decode(errors='replace')}")
        self.restart()
        return self.write_pin(label, pin)

    def write_pin(self, name: str, pin: str) -> Path:
        """Write a private file with a PIN and return its path."""
        path = self.folder / f"{name}.pin"
        path.write_text(pin + "\n")
        path.chmod(0o600)
        return path

    def uri(self, label: str, *, key: str = "", pin_source: Path | str | None = None, **options: str) -> KeyUri:
        """Return the URI of a token or of a key on it; the PIN comes from ``make_token``'s file if none is named."""
        source = pin_source or self.folder / f"{label}.pin"
        extra = "".join(f"&{name.replace('_', '-')}={value}" for name, value in options.items())
        named = f";object={key}" if key else ""
        return parse_key_uri(f"pkcs11:token={label}{named}?module-path={self.module}&pin-source={source}{extra}")

    def restart(self) -> None:
        """Let the module of this process, if it is loaded, read its configuration and tokens again."""
        from tidegate.keys.pkcs11_session import load_module  # the library is optional

        load_module(self.module).restart()
