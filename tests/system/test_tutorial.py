"""The tutorial works: every command of docs/tutorial.md, in order, with the exit codes that it promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REFUSED = re.compile(r"^(\S.*?)\s+# exit (\d)$", re.MULTILINE)
PROGRAMS = ("mksquashfs", "busybox", "ip", "nsenter", "unshare", "nmap", "pgrep", "mkfs.ext4")
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and mounts need root"),
    pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"one of {', '.join(PROGRAMS)} is missing"),
]


def script() -> str:
    """Return the page's commands as one script that ends at the first one that does not do what the page says."""
    prefix = f"tt{os.getpid()}"
    blocks = "\n".join(BLOCK.findall(PAGE.read_text()))
    checked = REFUSED.sub(
        r"status=0; \1 || status=$?; [ $status -eq \2 ] || { echo 'not refused: \1'; exit 1; }", blocks
    )
    assert REFUSED.findall(blocks)
    delete = "".join(f"ip netns delete {prefix}-{name}; " for name in ("device", "visitor"))
    cleanup = f"set +e; kill -KILL $power; {delete} rm -rf $run; true"
    return f"set -e\ntrap '({cleanup}) 2> /dev/null' EXIT\n" + checked.replace("tour-", f"{prefix}-")


def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "tidegate"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tidegate.cli.main "$@"\n')
    command.chmod(0o755)
    work = tmp_path / "tour"
    work.mkdir()
    environment = {**os.environ, "PATH": f"{bin_folder}:/usr/sbin:/sbin:{os.environ['PATH']}"}
    with (tmp_path / "output").open("w+") as output:  # a file: what runs in the background keeps no pipe open
        done = subprocess.run(
            ["/bin/bash", "-c", script()], cwd=work, env=environment, stdout=output, stderr=output, check=False
        )
        output.seek(0)
        said = output.read()
    assert done.returncode == 0, said
    for wanted in ("192.0.2.66 banned for 60 s", "confirmed  1.1.0", "events.chain.altered", "boot.os.corrupt"):
        assert wanted in said, said
