"""Benchmarks: each room beside a named peer, in the same run. ``make bench [NAME=room]``."""
