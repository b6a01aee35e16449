"""Images: the signed manifest of what a device must hold, and the proof that it holds it.

Promises: a manifest signed by every key that the trust policy asks for, a slot and bundle layout that is verifiable
block by block (dm-verity's own tree), a verifier that hands out a ``VerifiedImage`` or raises.
Leaves to others: starting it (``boot``), storing it (``update``), private keys (``keys``).
Read first: ``verify.py``; docs/formats/image.md has every byte.
"""
