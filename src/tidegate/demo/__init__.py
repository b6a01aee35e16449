"""The main job of ``make demo``: a maker, a device and an attacker on this machine.

Promises: every step happens on real parts and shows its evidence; a step that fails makes the demo fail.
Leaves to others: everything; it only calls the other rooms.
Read first: ``story.py``.
"""
