"""Data at rest: what an application stores here is encrypted before it is written and decrypted into memory only.

Promises: AES-256-GCM in chunks with a key per file; names are not on the storage; truncated, extended, reordered,
exchanged, altered, deleted or older files are each refused with their own code; a write is wholly old or wholly new
after a power cut; deleting destroys the file's key. The vault key is not on the storage except wrapped by an unlocker.
Leaves to others: where the unlocker's key lives (``keys``), who may ask (``agent``), swap and core dumps (the system),
kernel encryption of directories.
Read first: ``store.py`` for use, ``format.py`` for the bytes; docs/formats/vault.md has every one of them.
"""
