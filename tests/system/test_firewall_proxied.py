"""What a SYN proxy leaves of a service's limits on the real kernel: all of them, and the managers' own way."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import msgspec
import pytest

from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, PEER = "192.0.2.1", "192.0.2.2"
STRANGERS = [f"192.0.2.{number}" for number in range(100, 120)]
SLOW = {"interval_s": 60, "high": 2}
REFUSED_S = 0.4  # an answer comes within a millisecond


class Wire:
    """A device that answers on port 80 and echoes, and a peer with many addresses."""

    def __init__(self, device: Namespace, peer: Namespace) -> None:
        self.device, self.peer = device, peer
        with device.inside():
            self.nft = Nft.open()
            self.listener = socket.create_server((DEVICE, 80))
        threading.Thread(target=self._serve, daemon=True).start()

    def load(self, web: dict[str, Any], **top: Any) -> None:
        services = {"web": {"protocol": "tcp", "ports": [80], "peers": ["any"], "syn_proxy": True} | web}
        section = msgspec.convert({"services": services} | top, FirewallSection)
        self.nft.run(encode_ruleset(plan_ruleset(section)))

    def call(self, held: ExitStack, *, source: str = PEER, wait_s: float = 5) -> bool:
        """Return whether the service answers within ``wait_s`` to a connection from ``source``, which stays open.

        The proxy leaves what is lost on its way to the service to the client's retransmissions: seconds.
        """
        with self.peer.inside():
            client = held.enter_context(socket.socket())
        client.settimeout(wait_s)
        with suppress(OSError):
            client.bind((source, 0))
            client.connect((DEVICE, 80))
            client.sendall(b"x")
            return client.recv(1) == b"x"
        return False

    def close(self) -> None:
        self.listener.close()
        self.nft.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=_echo, args=(self.listener.accept()[0],), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while said := connection.recv(100):
            connection.sendall(said)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Namespace.create(make_unique("tgsp")) as device, Namespace.create(make_unique("tgsp-peer")) as peer:
        here = [f"{address}/24" for address in (PEER, *STRANGERS)]
        join(device, peer, addresses_a=[f"{DEVICE}/24"], addresses_b=here)
        device.run(["sh", "-c", "echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_loose"])  # as a confirmation does
        made = Wire(device, peer)
        yield made
        made.close()


@pytest.mark.parametrize(
    ("web", "top"),
    [
        ({"limit": {"connections": 2}}, {}),
        ({"limit": {"total_connections": 2}, "peers": ["192.0.2.0/24"], "interfaces": ["eth0"]}, {}),
        ({"thresholds": [SLOW]}, {}),
        ({"thresholds": [SLOW | {"per": "service", "low": 1}]}, {}),
        ({}, {"thresholds": [SLOW | {"per": "total"}]}),
    ],
)
def test_behind_a_syn_proxy_limits_count_what_reaches_the_service(
    wire: Wire, web: dict[str, Any], top: dict[str, Any]
) -> None:
    """The proxy opens the connection to the service by the loopback device, where nothing else is limited."""
    wire.load(web, **top)
    with ExitStack() as held:
        assert [wire.call(held) for _ in range(2)] == [True, True]
        assert [wire.call(held, wait_s=REFUSED_S) for _ in range(2)] == [False, False]


def test_a_full_table_of_sources_keeps_no_manager_out(wire: Wire) -> None:
    limit = {"new_per_s": 1, "sources": 16, "connections": 1}
    wire.load({"limit": limit}, management={"peers": [PEER], "service": "web"})
    with ExitStack() as held:
        assert [wire.call(held, source=stranger) for stranger in STRANGERS[:16]] == [True] * 16
        assert [wire.call(held, source=stranger, wait_s=REFUSED_S) for stranger in STRANGERS[16:]] == [False] * 4
        assert all(wire.call(held) for _ in range(3))
