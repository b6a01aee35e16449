"""``tidegate ids``: run the sensor, replay captures, look after rules, baselines and EVE files."""

from __future__ import annotations

import argparse

from tidegate.cli import ids_baseline, ids_follow, ids_replay, ids_rules, ids_run, ids_top

_FILES = (ids_run, ids_replay, ids_rules, ids_baseline, ids_top, ids_follow)


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs; each stands in a file of its own beside this one."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for file in _FILES:
        file.add_to(verbs)
