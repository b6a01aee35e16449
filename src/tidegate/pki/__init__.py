"""Certificates, from a device's birth to its retirement: profiles, a CA, enrolment, path validation, revocation.

Promises: keys never leave their ``KeyStore``; a profile decides what a certificate says, a request only asks; a
certificate is recorded before it is handed out, once for each request; chains, revocation lists, OCSP answers and
changes of trust anchors are judged before anybody relies on them, and every refusal says why.
Leaves to others: keys (``keys``), TLS and HTTP (``tls``), events and the command line (callbacks are passed in).
Read first: ``profiles.py``; then ``authority.py`` for a CA, ``path.py`` for who relies on it, ``identity.py`` for a
device.
"""
