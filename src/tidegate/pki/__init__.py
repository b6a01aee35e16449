"""Certificates: the identity that a device is born with.

Promises today: a factory CA and IDevID certificates (IEEE 802.1AR) whose keys stay in their ``KeyStore``.
Leaves to others: keys (``keys``). Enrolment, renewal and revocation come with the identity flow.
Read first: ``certificate.py``.
"""
