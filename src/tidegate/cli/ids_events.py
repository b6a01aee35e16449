"""Events for the verbs of ``tidegate ids`` that read them: from a capture file or an EVE file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tidegate.base.durable import translate_os_errors

_CAPTURE_MAGIC = frozenset(
    {b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1", b"\x0a\x0d\x0d\x0a"}
)  # pcap in both orders and resolutions; pcapng


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of an EVE file, or those that the sensor makes of a capture file."""
    with translate_os_errors(path), path.open("rb") as stream:
        is_capture = stream.read(4) in _CAPTURE_MAGIC
    if not is_capture:
        from tidegate.ids.evefile import read_eve

        yield from read_eve(path)
        return
    from tidegate.cli.ids_options import has_engine

    if has_engine():
        from tidegate.ids.inspector import Sensor

        yield from Sensor().replay(path)
        return
    from tidegate.ids.section import REPLAY_FLOW_EVENTS_PER_S, FlowEvents, IdsSection, plan_sensor
    from tidegate.ids.sensor import Replay

    plan = plan_sensor(IdsSection(flow_events=FlowEvents.ALL), flow_events_per_s=REPLAY_FLOW_EVENTS_PER_S)
    yield from map(json.loads, Replay(str(path), plan.config_json))
