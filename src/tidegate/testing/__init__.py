"""Simulators that implement the real interfaces, shipped because users test too.

Promises: network namespaces joined by veth, a block device whose power is cut at any
write, a maker with small images. Leaves to others: assertions. Nothing here belongs on a device.
Read first: ``netns.py`` and ``power.py``.
"""
