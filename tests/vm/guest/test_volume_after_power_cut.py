"""The volume that volume_and_power_cut.py left: opened again by the vault's key, and by no other.

Runs in a guest alone (tests/vm/test_guest.py starts it).
"""

import json
import os
from pathlib import Path

import pytest

from tidegate.base.program import run_program
from tidegate.cli.main import main
from tidegate.testing.guest import guest_disk, is_guest

pytestmark = [pytest.mark.root, pytest.mark.skipif(not is_guest(), reason="runs in a guest: make test-vm")]


def test_the_volume_is_as_it_was(tmp_path, capsys):
    vault, key, marker = (os.environ[name] for name in ("TIDEGATE_VAULT", "TIDEGATE_KEY", "TIDEGATE_MARKER"))
    disk, mount = str(guest_disk(0)), tmp_path / "mount"
    mount.mkdir()

    def say(*words):
        capsys.readouterr()
        status = main([*words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    other = str(tmp_path / "other")
    assert main(["vault", "create", other, "--key", key]) == 0
    assert say("vault", "volume-open", disk, "data", "--vault", other, "--key", key)[0] in {2, 3, 4}
    assert not Path("/dev/mapper/data").exists()
    assert say("vault", "volume-open", disk, "data", "--vault", vault, "--key", key)[0] == 0
    assert say("vault", "volume-status", disk)[1]["open_as"] == ["data"]
    run_program(["mount", "/dev/mapper/data", str(mount)])  # the journal is replayed
    assert (mount / "kept").read_bytes() == marker.encode() * 1000
    status, document = say("vault", "volume-close", "data")
    assert (status, document["error"]["code"]) == (4, "vault.volume.busy")
    run_program(["umount", str(mount)])
    assert say("vault", "volume-close", "data")[0] == 0
    assert not Path("/dev/mapper/data").exists()
    assert say("vault", "volume-status", disk)[1]["open_as"] == []
