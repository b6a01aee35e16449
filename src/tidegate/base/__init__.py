"""Ground floor: what every other room stands on.

Promises: the error families and their permanent codes, clock and entropy as parameters, bounded readers, atomic
durable files, block devices and the two-copy record that survives a power cut at any write.
Leaves to others: every format, every algorithm, every decision.
Read first: ``errors.py``, then ``durable.py``.
"""
