"""Events: what happened, in one vocabulary, in an order that nobody can change unseen.

Promises: every event is one OCSF JSON line (schema 1.8.0); lines form a SHA-256 chain per device and boot, each boot
continues the one before; batches are signed as checkpoints; the spool is bounded, survives a power cut, never lets
information push out alerts, and what it dropped is itself an event.
Leaves to others: who makes events (every room above), the response (``ids``, ``agent``), the way to a manager
(forwarders, ``agent``), where the signing key lives (``keys``).
Read first: ``model.py``, then ``chain.py``; ``catalogue.py`` has a constructor per event; docs/formats/events.md has
every byte.
"""
