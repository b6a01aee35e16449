"""Data at rest: what an application stores here is encrypted before it is written and decrypted into memory only.

Promises: a key per file, names and records hidden, sizes hidden where asked; truncated, extended, reordered, exchanged,
altered, deleted or older content, and a forged vault, are each refused with their own code; a change is wholly old or
wholly new after a power cut; deleting destroys the file's key. The vault key is not on the storage except wrapped, by
unlockers of which any opens the vault; they are added, removed, and the vault re-keyed, while it is used. Directories
and volumes are encrypted by the kernel with keys that the vault keeps; age files carry out what leaves it.
Leaves to others: where an unlocker's key lives (``keys``), who may ask (``agent``), swap (the system).
Read first: ``store.py`` for use, then ``engine.py`` (items) and ``table.py`` (everything small), ``format.py`` and
``record.py`` for the bytes; docs/formats/vault.md has every one of them, docs/vault.md is for people.
"""
