"""The one signed document that drives every room.

Promises: a TOML text with a typed section per room, errors with line and nearest valid key, a signed form that no
older version and no other device's policy can stand in for.
Leaves to others: doing what it says (the rooms), keeping it on a device (``agent``).
Read first: ``document.py``; docs/policy.md names every key.
"""
