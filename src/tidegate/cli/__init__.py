"""The command ``tidegate NOUN VERB``: arguments, rendering and exit codes.

Promises: ``--help`` without importing a room, ``--json`` on every verb that answers, exit codes that mean something
(docs/cli.md). Leaves to others: every decision.
Read first: ``main.py``; then the file named after the noun.
"""
