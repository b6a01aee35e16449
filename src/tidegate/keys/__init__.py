"""Keys: born in a provider, used by name, never leaving it.

Promises: one ``KeyStore`` protocol and key URIs for every provider; what a provider cannot do is said by its
capabilities before it is asked.
Leaves to others: certificates (``pki``), what is signed. Each provider is a file (software, pkcs11, tpm2, remote);
``keyd.py`` is the process that alone talks to a token.
Read first: ``store.py``; docs/formats/keystore.md has every byte of the software provider's files.
"""
