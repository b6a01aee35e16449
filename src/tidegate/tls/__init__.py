"""TLS whose private key stays in its provider, on the interpreter's own ``ssl`` module.

Promises: ordinary ``ssl.SSLContext`` objects for TLS 1.2 and 1.3 that sign with any ``Signer`` (token, TPM, software,
another process), without an OpenSSL configuration file and without C code; mutual authentication, OCSP stapling on
both ends, revocation lists that can be renewed while connections run. A self-check, once a process, refuses to work
where the technique would not.
Leaves to others: the keys (``keys``), certificates and what makes a revocation answer good (``pki``), sockets and
protocols above TLS. Limits: docs/tls.md.
Read first: ``context.py``, then ``provider.py``.
"""
