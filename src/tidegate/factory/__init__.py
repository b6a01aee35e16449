"""The maker's bench: an image description becomes a signed bundle, a blank device becomes one of the fleet.

Promises: nothing secret leaves its key store; a device is provisioned whole or the command says what is missing; a key
ceremony divides a token's PIN among people and proves that what it made works.
Leaves to others: formats (``image``), storage (``boot``), certificates (``pki``), tokens (``keys``).
Read first: ``provision.py``; ``token.py`` for a ceremony.
"""
