"""Judges the sensor by Suricata's public test suite: ``make suricata-verify DIR=…``.

Promises: every ``test.yaml`` below a folder is read as the suite's own runner reads it, the command that an operator
would type runs over the case's capture, rules and configuration, and each check is passed, not passed with a reason, or
skipped with a reason. No case is treated by its name, path or content other than the suite's own rules say.
Leaves to others: what the sensor does.
Read first: ``cases.py`` (what a case asks for), ``command.py`` (the one place where the command is built), then
``matching.py``.

It stands in ``bench`` and not in ``tests``: it measures how much of a peer's behaviour we have, takes minutes, and
needs a corpus that is not part of the repository. What it does itself is tested in tests/unit/bench.
"""
