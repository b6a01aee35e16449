"""The network sensor and the host watchers: what they see becomes EVE lines and file changes, and a decision.

Promises: the sensor (Rust, ``rust/sensor``) stays within its one memory number and counts what it refuses; scans and
floods are reported within two seconds of their start; a response never bans an address on evidence that anybody could
have made up about a genuine peer. Leaves to others: banning (``tidegate.firewall.bans``), the event log, supervision.
Read first: ``section.py``, then ``response.py``; ``sensor.py`` wraps the Rust module, ``worker.py`` is its process.
"""
