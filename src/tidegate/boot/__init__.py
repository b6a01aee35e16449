"""The chain of trust: who verifies whom, what was measured, which slot starts and when it falls back.

Promises: an immutable first stage that knows only the ROM's trust anchors and starts nothing it did not verify; a
second stage that verifies every block of the operating system and its applications; a log of measurements; slot
states that survive a power cut at any write.
Leaves to others: writing slots (``update``), native boot formats (to come), TPM quotes (``keys``).
Read first: ``chain.py`` for what is verified, then ``slots.py`` for what is started.
"""
