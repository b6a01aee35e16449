"""What a ruleset would look like in the kernel, without its being in force: loaded into a network namespace of its own.

A policy's text and the kernel's listing of it never compare: nft turns names into numbers, sorts sets and merges
ranges, each version its own way. So the same nft loads the text where no packet is and lists it there.

Touches: a child process, which has a new network namespace; it ends, and the namespace with it, before anything is
returned. The namespace that the caller is in is read, never changed.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tidegate.base.errors import NotRoot
from tidegate.firewall.diff import diff_texts
from tidegate.firewall.effective import read_listings
from tidegate.firewall.errors import NftRefused, ScratchFailed
from tidegate.firewall.nft import Nft
from tidegate.firewall.snapshot import Listings

TIMEOUT_S = 60.0  # a text of 1,000 services is loaded and listed in under a second
MAX_WORDS = 2000  # of the child's last words
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_REFUSED = 3  # the child's exit status when nftables does not take the text
_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
_HOOK = re.compile(r'(?P<head>^\t\ttype filter hook ingress device )"(?P<device>[^"]+)"', re.MULTILINE)
_CHAIN = re.compile(r"^\tchain (?P<name>\S+) \{$", re.MULTILINE)


def diff_with_kernel(text: str) -> list[str]:
    """Return what changes in our tables in the kernel when ``text`` is put in force, as ``diff.diff_texts`` says it.

    ``text`` is one that ``compile.encode_ruleset`` made. A device with layer-2 rules that is not there is told as a
    chain to come: it is loaded when the device appears. Raises what ``list_planned`` raises.
    """
    planned = list_planned(text)
    return diff_texts(_join(read_listings(Nft.open(), with_names=False)), planned)


def list_planned(text: str) -> str:
    """Return our tables as the kernel would list them with ``text`` in force.

    Raises ``firewall.nft.refused`` when nftables does not take the text, ``firewall.scratch.failed``,
    ``base.privilege.missing``.
    """
    if os.geteuid() != 0:
        raise NotRoot("a network namespace needs root", capability="CAP_SYS_ADMIN")
    devices = dict(_find_devices(text))
    loadable = _HOOK.sub(r'\g<head>"lo"', text)  # the one device that every namespace has
    command = [sys.executable, "-m", "tidegate.firewall.scratch", str(_OWN_NAMESPACE.readlink())]
    try:
        done = subprocess.run(command, input=loadable, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ScratchFailed(f"no listing within {TIMEOUT_S:g} s") from error
    words = done.stderr.strip()[-MAX_WORDS:]
    if done.returncode == _REFUSED:
        raise NftRefused(words, engine="scratch")
    if done.returncode != 0:
        raise ScratchFailed(words or f"the child ended with status {done.returncode}")
    return _restore_devices(done.stdout, devices)


def _find_devices(text: str) -> Iterator[tuple[str, str]]:
    """Yield chain and device of each chain at a device."""
    for chain in _CHAIN.finditer(text):
        hook = _HOOK.match(text, chain.end() + 1)
        if hook is not None:
            yield chain["name"], hook["device"]


def _restore_devices(listing: str, devices: dict[str, str]) -> str:
    """Return the listing with the devices that the text named."""
    parts, at = [], 0
    for chain in _CHAIN.finditer(listing):
        hook = _HOOK.match(listing, chain.end() + 1)
        if hook is not None:
            parts += [listing[at : hook.start()], f'{hook["head"]}"{devices[chain["name"]]}"']
            at = hook.end()
    return "".join([*parts, listing[at:]])


def _join(listings: Listings) -> str:
    return "".join(part for part in (listings.policy, listings.bans, listings.link) if part is not None)


def _main(parent: str) -> int:
    """Load standard input in a new network namespace and print the listing; ``parent`` is where it must not be."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        return _complain(f"no network namespace: {os.strerror(ctypes.get_errno())}", 1)
    if str(_OWN_NAMESPACE.readlink()) == parent:  # else a ruleset that was only asked about would be in force
        return _complain("the new network namespace is the old one", 1)
    nft = Nft.open()
    try:
        nft.run(sys.stdin.read())
    except NftRefused as error:
        return _complain(error.message, _REFUSED)
    sys.stdout.write(_join(read_listings(nft, with_names=False)))
    return 0


def _complain(words: str, status: int) -> int:
    sys.stderr.write(f"{words}\n")
    return status


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
