"""The device daemon: loads the policy, runs the rooms, arms rollbacks, answers locally.

Promises: what the signed policy says is in force, or the one before it is; everything that happens becomes an event;
a system on trial is confirmed only after it proved healthy.
Leaves to others: every decision (the rooms), the fleet (``manager``, to come).
Read first: ``daemon.py``.
"""
