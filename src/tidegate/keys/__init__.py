"""Keys: born in a provider, used by name, never leaving it.

Promises: one ``KeyStore`` protocol and key URIs for every provider; what a provider cannot do is said by its
capabilities before it is asked. Today: the software provider, sealed by an Argon2id passphrase or a device secret.
Leaves to others: certificates (``pki``), what is signed. PKCS#11 and TPM 2.0 come as one file each.
Read first: ``store.py``; docs/formats/keystore.md has every byte of the software provider's files.
"""
