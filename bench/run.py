"""Runs the benchmarks of all rooms, or of one, and writes ``build/bench/ROOM.json`` and ``bench/RESULTS.md``.

Every ``bench/ROOM.py`` has ``run()``, which returns a list of {name, ours, peer, peer_value, ratio, higher_is_better,
unit, machine, date}. RESULTS.md takes each room's part from its JSON file, and keeps what it says of rooms that have
none here, so one room can be measured alone. Plots that a room wrote as ``build/bench/ROOM-*.svg`` stand behind its
table, and then what ``bench/notes/ROOM.md`` says.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "bench"
RESULTS = ROOT / "bench" / "RESULTS.md"
PLOTS = ROOT / "bench" / "plots"  # build/ is not part of the repository; RESULTS.md and what it shows are
NOTES = ROOT / "bench" / "notes"
FIELDS = ("name", "ours", "peer", "peer_value", "ratio", "higher_is_better", "unit", "machine", "date")
_HEAD = """# Results

Made by `make bench` from `build/bench/*.json`. A ratio above 1 is in our favour, whichever way the unit counts. Every
row was measured beside its peer in one run on the machine named; where there is no peer there is no ratio.
"""


def main() -> int:
    names = sys.argv[1:] or sorted(path.stem for path in (ROOT / "bench").glob("*.py") if path.stem not in _NOT_ROOMS)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"-- {name}", flush=True)
        rows: list[dict[str, Any]] = importlib.import_module(f"bench.{name}").run()
        for row in rows:
            missing = [field for field in FIELDS if field not in row]
            if missing:
                raise SystemExit(f"bench/{name}.py: row {row.get('name')!r} lacks {', '.join(missing)}")
            print(f"{row['name']}: {_number(row['ours'])} {row['unit']}; {row['peer']}: {_number(row['peer_value'])}")
        (OUTPUT / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    write_results()
    return 0


def write_results() -> None:
    """Make the part of every room whose JSON file is there anew; the others stay as they are."""
    rooms = _written_rooms(RESULTS.read_text() if RESULTS.exists() else "")
    for path in OUTPUT.glob("*.json"):
        rows = json.loads(path.read_text())
        if rows:
            rooms[path.stem] = _room(path.stem, rows)
    RESULTS.write_text("\n".join([_HEAD, *(rooms[name] for name in sorted(rooms))]) + "\n")


def _written_rooms(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return {name: f"\n## {name}\n{part.rstrip()}" for name, part in zip(parts[::2], parts[1::2], strict=True)}


def _room(name: str, rows: list[dict[str, Any]]) -> str:
    parts = [f"\n## {name}\n\n{rows[0]['machine']}, {rows[0]['date']}\n"]
    parts.append("| what | ours | peer | peer's figure | ratio | unit |\n| --- | ---: | --- | ---: | ---: | --- |")
    parts += [
        f"| {row['name']} | {_number(row['ours'])} | {row['peer'] or '-'} | {_number(row['peer_value'])} | "
        f"{_number(row['ratio'])} | {row['unit']} |"
        for row in rows
    ]
    return "\n".join(parts + _plots(name) + _notes(name))


def _plots(name: str) -> list[str]:
    plots = sorted(OUTPUT.glob(f"{name}-*.svg"))
    if plots:
        PLOTS.mkdir(exist_ok=True)
    for plot in plots:
        shutil.copyfile(plot, PLOTS / plot.name)
    return [f"\n![{plot.stem}](plots/{plot.name})" for plot in plots]


def _notes(name: str) -> list[str]:
    path = NOTES / f"{name}.md"
    return [f"\n{path.read_text().rstrip()}"] if path.exists() else []


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


_NOT_ROOMS = {"__init__", "run", "machine"}

if __name__ == "__main__":
    sys.exit(main())
