"""The process that is measured: one of our sensors over one capture file, to its end.

``python subject.py CONFIG``, a JSON object: ``capture`` and ``tally`` (the tally's configuration) or ``rules`` (paths)
and ``memory``; or ``interpreter`` alone. Prints one JSON object: what it saw, what it cost, and its own VmHWM.
"""

import json
import os
import re
import sys
from pathlib import Path


def main() -> None:
    config = json.loads(sys.argv[1])
    if config.get("interpreter"):
        return report({})
    if "tally" in config:
        from tidegate.ids import _sensor

        stats = _sensor.Sensor(config["tally"]).replay(config["capture"])
        return report({"packets": stats["decoder"]["pkts"]})
    from tidegate.ids.inspector import Sensor, SensorConfig

    begin = _cpu_s()
    sensor = Sensor(SensorConfig(rules=tuple(config["rules"]), memory=config["memory"]))
    load_s, load_mb = _cpu_s() - begin, memory_mb("VmRSS")
    lines = sum(1 for _ in sensor.replay_lines(config["capture"]))
    stats = json.loads(sensor.stats_line())["stats"]
    loaded = sensor.rules.report() if sensor.rules else None
    return report(
        {
            "packets": stats["decoder"]["pkts"],
            "lines": lines,
            "load_s": load_s,
            "load_mb": load_mb,
            "rules": loaded.loaded if loaded else 0,
            "alerts": stats["detect"]["alert"],
            "flow_slots": stats["memory"]["flow_slots"],
        }
    )


def report(found: dict[str, object]) -> None:
    print(json.dumps({**found, "hwm_mb": memory_mb("VmHWM"), "cpu_s": _cpu_s()}))


def memory_mb(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
