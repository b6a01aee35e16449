"""Simulators that implement the real interfaces, shipped because users test too.

Promises: network namespaces joined by veth, a block device whose power is cut at any write, a disk that remembers what
a file system wrote, an ext4 in an image, a network key server, a maker with small images, tokens and TPMs in software,
a CA, the conformance suite that judges a provider of keys. Leaves to others: assertions.
Nothing here belongs on a device.
Read first: ``netns.py`` and ``power.py``; ``keystores.py`` for who writes a provider.
"""
