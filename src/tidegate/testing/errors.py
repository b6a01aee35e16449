"""Errors of the simulators and of the test namespaces."""

from __future__ import annotations

from tidegate.base.errors import Fault, Misuse


class NamespaceBusy(Misuse):
    code = "testing.netns.busy"
    advice = "Take another name, or delete the old namespace with `ip netns delete NAME` if nothing needs it any more."


class NamespaceName(Misuse):
    code = "testing.netns.name"
    advice = (
        "Use letters, digits, dots, dashes and underscores only: 1 to 64 for a namespace, 1 to 15 for an interface."
    )


class NamespaceGone(Misuse):
    code = "testing.netns.gone"
    advice = "The namespace was deleted; create it again before using it."


class NamespaceFailed(Fault):
    code = "testing.netns.failed"
    advice = "Read the system's message; network namespaces need a kernel with CONFIG_NET_NS and the veth driver."


class TokenToolFailed(Fault):
    code = "testing.token.failed"
    advice = "Read the tool's message; the folder of the tokens has to be writable and new."


class ConformanceFailed(Fault):
    code = "testing.conformance.failed"
    advice = "The provider does not do what keys/store.py promises: mend it, or say by its capabilities that it cannot."


class PowerCut(BaseException):
    """The simulated power went away. No ``TidegateError``: code that runs on a device must not be able to handle it."""


class SwTpmFailed(Fault):
    code = "testing.swtpm.failed"
    advice = "Read the program's log in the message; the Debian package swtpm has the TPM that tests use."


class CutDiskFailed(Fault):
    code = "testing.cutdisk.failed"
    advice = "A recorded disk needs root, /dev/fuse and loop devices."


class KeydFailed(Fault):
    code = "testing.keyd.failed"
    advice = "Read what the key process said in the message."


class GuestFailed(Fault):
    code = "testing.guest.failed"
    advice = (
        "Read the guest's console in the message; it needs qemu-system-x86, busybox-static, cpio, swtpm and a kernel."
    )
