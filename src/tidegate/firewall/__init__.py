"""The device's packet filter: one policy section, one atomic nftables transaction, one armed rollback.

Promises: default deny in and (if asked) out for IPv4 and IPv6 alike; thresholds that refuse when their memory is full;
bans that survive every reload; a change that nobody confirms is undone by a separate process, even when the one that
made it is killed. Deciding files are pure: ``section`` (what the operator writes), ``model`` (what it means, and the
evaluator), ``checks``, ``compile``, ``snapshot``. Doing files: ``nft`` (libnftables or the program), ``commit`` (apply,
confirm, roll back, restore at boot), ``guard`` (the rollback's own process), ``bans``.
Leaves to others: verifying the policy's signature (``policy``), looking into payloads and deciding whom to ban
(``ids``), when to apply and what to probe (``agent``).
Read first: ``section.py``, then ``compile.py``; ``commit.apply_section`` is the way in for callers.
"""
