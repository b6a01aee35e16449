"""Foundational cryptography: few algorithms, well chosen, each with one way to call it.

Promises: deterministic CBOR read strictly, COSE_Sign envelopes bound to one role by their context, trust policies that
demand every class of algorithm they name, AEAD and key derivation over the ``cryptography`` library.
Leaves to others: where private keys live (``keys``), what a signed payload means (``image``, ``policy``, ``events``).
Read first: ``cose.py``; docs/formats/envelope.md has every byte.
"""
