"""The maker's bench: an image description becomes a signed bundle, a blank device becomes one of the fleet.

Promises: nothing secret leaves its key store; a device is provisioned whole or the command says what is missing.
Leaves to others: formats (``image``), storage (``boot``), certificates (``pki``).
Read first: ``provision.py``.
"""
