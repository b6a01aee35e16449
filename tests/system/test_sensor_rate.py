"""The capture ring keeps up with packets over veth. The full rate is measured by bench/ids.py."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from tidegate.ids.section import IdsSection, plan_sensor
from tidegate.ids.sensor import LiveSensor
from tidegate.testing.netns import Namespace, join, make_unique

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and packet sockets need root"),
]

DATAGRAMS = 60_000
SENDER = (
    "import socket, sys\n"
    "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "sender.connect(('192.0.2.1', 9))\n"
    "sent = 0\n"
    f"while sent < {DATAGRAMS}:\n"
    "    try:\n"
    "        sent += sender.send(b'x' * 26) // 26\n"
    "    except ConnectionRefusedError:\n"
    "        pass\n"
)


def test_every_datagram_of_a_burst_is_seen_and_none_dropped():
    config = plan_sensor(IdsSection(memory="12MiB")).config_json
    with Namespace.create(make_unique("tg-rate-d")) as device, Namespace.create(make_unique("tg-rate-s")) as sender:
        join(device, sender, addresses_a=["192.0.2.1/24"], addresses_b=["192.0.2.2/24"])
        with device.inside():
            sensor = LiveSensor("eth0", config)
        with sensor:
            blast = threading.Thread(target=lambda: sender.run([sys.executable, "-c", SENDER]))
            blast.start()
            while blast.is_alive():
                sensor.poll(50)
            blast.join()
            for _ in range(4):
                sensor.poll(50)
            stats = sensor._sensor.stats()
    assert stats["capture"]["kernel_drops"] == 0
    assert stats["decoder"]["udp"] >= DATAGRAMS
    assert stats["output"]["refused"] == 0
