"""Requests of real masters and clients: the field rules' parsers read the function that tshark reads.

The folder is found through TIDEGATE_CORPORA, or beside the repository as ``shared/corpora``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tidegate.base.errors import TidegateError
from tidegate.base.program import find_program

sensor = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")

REPOSITORY = Path(__file__).resolve().parents[2]
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", REPOSITORY.parent / "shared" / "corpora"))
LARGEST = 150_000  # bytes of a capture: the larger ones only repeat themselves

# protocol: port, the key that every message has, tshark's name of it, what its decoder is called
STREAMS = {
    "modbus": (502, "functions", "modbus.func_code", "modbus"),
    "dnp3": (20000, "functions", "dnp3.al.func", "dnp3"),
}
DATAGRAMS = {
    "bacnet": (47808, "services", "bacapp.type", "bacapp"),
    "coap": (5683, "methods", "coap.code", "coap"),
    "dns": (53, "types", "dns.qry.type", "dns"),
}
LAST = {"functions": 127, "services": 1279, "methods": 31, "types": 65535}


def watcher(protocol: str, key: str, *, datagram: bool) -> Any:
    """A rule that reports every message and lets it pass."""
    rule = {
        "id": 1,
        "name": "watch",
        "protocol": protocol,
        "mode": "observe",
        "unparsable": "drop",
        "allow": [],
        "deny": [{key: [[0, LAST[key]]]}],
    }
    return sensor.FieldStream(json.dumps({"version": 1, "memory_bytes": 65536, "rules": [rule]}), 1, datagram)


def tshark_rows(path: Path, wanted: str, fields: list[str]) -> list[list[str]]:
    try:
        tshark = find_program("tshark")
    except TidegateError as error:
        pytest.skip(error.message)
    names = [part for field in fields for part in ("-e", field)]
    command = [tshark, "-r", str(path), "-Y", wanted, "-T", "fields", *names]
    done = subprocess.run(command, capture_output=True, check=False, timeout=15)
    return [line.split("\t") for line in done.stdout.decode(errors="replace").splitlines()]


def captures(protocol: str) -> list[Path]:
    folder = CORPORA / "ics-pcap"
    if not folder.is_dir():
        pytest.skip("no corpus ics-pcap: set TIDEGATE_CORPORA")
    word = {"coap": "coap", "dns": "dns"}.get(protocol, protocol)
    found = [path for part in ("ics-pcap", "ndpi-pcap") for path in sorted((CORPORA / part).rglob("*"))]
    return [path for path in found if path.is_file() and word in path.name.lower() and path.stat().st_size < LARGEST][
        :14
    ]


def numbers(told: list[str], protocol: str, word: str) -> list[int]:
    return [int(found[1]) for line in told if (found := re.match(rf"{protocol} {word} (?:\w+:)?(\d+)", line))]


@pytest.mark.parametrize("protocol", STREAMS)
def test_functions_of_streams_are_tshark_s(protocol):
    port, key, name, _decoder = STREAMS[protocol]
    agreed, differing = 0, []
    for path in captures(protocol):
        wanted = f"tcp.dstport == {port} && tcp.len > 0 && !tcp.analysis.retransmission"
        streams: dict[str, Any] = {}
        for stream, payload, functions in tshark_rows(path, wanted, ["tcp.stream", "tcp.payload", name]):
            judge, told, theirs = streams.setdefault(stream, (watcher(protocol, key, datagram=False), [], []))
            told += judge.feed(bytes.fromhex(payload))[1]
            theirs += [int(number, 0) for number in functions.split(",") if number]
        for stream, (_, told, theirs) in streams.items():
            ours = numbers(told, protocol, "function")
            if any(not line.startswith(f"{protocol} ") for line in told):
                continue  # damaged on purpose, or begun in the middle
            if ours != theirs:
                differing.append((path.name, stream, ours, theirs))
            agreed += len(ours)
    assert not differing
    assert agreed > 10


@pytest.mark.parametrize("protocol", DATAGRAMS)
def test_functions_of_datagrams_are_tshark_s(protocol):
    port, key, name, decoder = DATAGRAMS[protocol]
    agreed = 0
    for path in captures(protocol):
        if path.name.startswith("fuzz"):
            continue
        wanted = f"udp.dstport == {port} && {decoder} && !icmp"
        for payload, theirs in tshark_rows(path, wanted, ["udp.payload", name]):
            told = watcher(protocol, key, datagram=True).feed(bytes.fromhex(payload))[1]
            ours = numbers(told, protocol, key.removesuffix("s"))
            if not ours:
                continue  # an answer, or an empty message
            if protocol == "bacnet":
                kind = {"confirmed": 0, "unconfirmed": 1}.get(re.split("[ :]", told[0])[2])
                assert kind is None or kind == int(theirs, 0), path.name
            else:
                assert ours == [int(number, 0) for number in theirs.split(",") if number], path.name
            agreed += 1
    assert agreed > 3
