"""Secure firmware update: only what the maker signed reaches a slot, and a power cut at any write loses nothing.

Promises: a refused bundle leaves every byte of the storage as it was; an interrupted one resumes where it was; what
runs is never written to; a slot becomes bootable only after it was read back and verified whole.
Leaves to others: choosing and starting slots (``boot``), fetching over a network and TUF (to come).
Read first: ``installer.py``.
"""
