"""The ``[vault]`` section: what it may say, what is refused with its line, what is warned of, who is granted what."""

import msgspec
import pytest

from tidegate.agent.vault_grants import Scope, plan_grants
from tidegate.agent.vault_requests import MAX_PIECE_BYTES, ReadItem, WriteItem, name_of, parse_request
from tidegate.base.errors import Rejected
from tidegate.policy.check import check_sections, check_text, verify_sections
from tidegate.policy.document import parse_policy
from tidegate.vault.section import EraseTrigger, Trigger, VaultGrant, VaultSection, covers_item, overlaps

HEAD = "[policy]\nversion = 1\n"
WHOLE = (
    HEAD
    + """\
[vault]
lock = ["/data/patients"]
lock_on = ["lockdown"]
erase_on = ["end-of-life"]
swap = "refuse"
memory = "ignore"
[vault.grants.ward]
user = "ward"
items = ["patients/", "config"]
tables = ["sessions"]
write = true
[vault.grants.audit]
user = 1234
items = ["*"]
"""
)


def code_of(call, *arguments):
    with pytest.raises(Rejected) as caught:
        call(*arguments)
    return caught.value


def grants_of(*grants):
    section = msgspec.convert({"grants": {f"g{n}": grant for n, grant in enumerate(grants)}}, VaultSection)
    return plan_grants(section, {"ward": 100, "audit": 101}.get)


def test_the_whole():
    section = parse_policy(WHOLE).vault
    assert section.lock == ("/data/patients",)
    assert section.locks_on(Trigger.LOCKDOWN)
    assert not section.locks_on(Trigger.TAMPER)
    assert section.erases_on(EraseTrigger.END_OF_LIFE)
    assert section.grants["audit"] == VaultGrant(user=1234, items=("*",))
    verify_sections(parse_policy(WHOLE))


def test_by_default_both_lock_and_nothing_erases():
    section = parse_policy(HEAD + "[vault]\nlock = ['/data/x']\n").vault
    assert all(map(section.locks_on, Trigger))
    assert not any(map(section.erases_on, EraseTrigger))
    assert not any(map(parse_policy(HEAD + "[vault]\nlock_on = []\n").vault.locks_on, Trigger))


# text behind [vault], line, code
REFUSED = [
    ("lokc = []", 4, "policy.key.unknown"),
    ("lock = ['data']", 4, "policy.value.invalid"),
    ("lock_on = ['end-of-life']", 4, "policy.value.invalid"),
    ("erase_on = ['always']", 4, "policy.value.invalid"),
    ("swap = 'on'", 4, "policy.value.invalid"),
    ("[vault.grants.a]\nitems = ['x']", 4, "policy.value.invalid"),
    ("[vault.grants.a]\nuser = ''", 5, "policy.value.invalid"),
    ("[vault.grants.a]\nuser = 'a b'", 5, "policy.value.invalid"),
    ("[vault.grants.a]\nuser = -1", 5, "policy.value.invalid"),
    ("[vault.grants.a]\nuser = 4294967295", 5, "policy.value.invalid"),
    ("[vault.grants.a]\nuser = 'a'\nitems = ['']", 6, "policy.value.invalid"),
    ("[vault.grants.A]\nuser = 'a'\nitems = ['x']", 4, "policy.value.invalid"),
    ("[vault.grants.a]\nuser = 'a'\nwrit = true", 6, "policy.key.unknown"),
    ("[vault.grants.a]\nuser = 'a'", 4, "vault.policy.invalid"),
    ("[vault.grants.a]\nuser = 'a'\nitems = ['x/../y']", 6, "vault.policy.invalid"),
    ("[vault.grants.a]\nuser = 'a'\nitems = ['/x']", 6, "vault.policy.invalid"),
    ("[vault.grants.a]\nuser = 'a'\nitems = ['/']", 6, "vault.policy.invalid"),
    ("[vault.grants.a]\nuser = 'a'\nitems = ['x//']", 6, "vault.policy.invalid"),
    ("[vault.grants.a]\nuser = 'a'\ntables = ['" + "x" * 256 + "']", 6, "vault.policy.invalid"),
    ("lock = ['/data/../etc']", 4, "vault.policy.invalid"),
]


@pytest.mark.parametrize(("text", "line", "code"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_with_its_line(text, line, code):
    error = code_of(check_text, HEAD + "[vault]\n" + text + "\n", "p.toml")
    assert (error.code, error.fields["line"]) == (code, line)


def test_a_device_refuses_what_the_desk_refuses():
    policy = parse_policy(HEAD + "[vault.grants.a]\nuser = 'a'\n")
    assert code_of(verify_sections, policy).code == "vault.policy.invalid"


# text behind [vault], line and code of each warning
WARNED = [
    ("erase_on = ['end-of-life']", []),
    ("erase_on = ['tamper']", [(4, "erase")]),
    ("erase_on = ['tamper']\n[watch]\npaths = ['/etc']", [(4, "erase"), (4, "erase-watch")]),
    ("lock = ['/x']\nlock_on = []", [(4, "never-locked")]),
    ("[vault.grants.a]\nuser = 'no-such-user'\nitems = ['x']", [(4, "unknown-user")]),
    ("[vault.grants.a]\nuser = 'root'\nitems = ['x']", []),
    ("[vault.grants.a]\nuser = 1\nitems = ['x/']\n[vault.grants.b]\nuser = 2\nitems = ['x/y']", [(7, "overlap")]),
    ("[vault.grants.a]\nuser = 1\nitems = ['x/']\n[vault.grants.b]\nuser = 2\nitems = ['xy']", []),
    ("[vault.grants.a]\nuser = 1\ntables = ['x']\n[vault.grants.b]\nuser = 2\ntables = ['*']", [(7, "overlap")]),
]


@pytest.mark.parametrize(("text", "expected"), WARNED, ids=lambda value: str(value)[:40])
def test_warned_of(text, expected):
    _, findings = check_text(HEAD + "[vault]\n" + text + "\n", "p.toml")
    assert [(line, finding.code.removeprefix("vault.check.")) for line, finding in findings] == expected


def test_who_only_plans_asks_for_no_users():
    assert check_sections(parse_policy(HEAD + "[vault.grants.a]\nuser = 'no-such-user'\nitems = ['x']\n")) == []


@pytest.mark.parametrize(
    ("granted", "name", "covered"),
    [
        ("*", "a", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "a/b", False),
        ("a/", "a/b", True),
        ("a/", "a/b/c", True),
        ("a/", "a", False),
        ("a/", "ab", False),
        ("a*", "ab", False),
    ],
)
def test_what_an_entry_means(granted, name, covered):
    assert covers_item(granted, name) is covered


def test_overlap_is_mutual():
    one, other = VaultGrant(user=1, items=("a/b",)), VaultGrant(user=2, items=("a/",))
    assert overlaps(one, other)
    assert overlaps(other, one)
    assert not overlaps(one, VaultGrant(user=2, tables=("a/b",)))


def test_only_what_is_granted_and_reading_is_not_writing():
    grants, unknown = grants_of(
        {"user": "ward", "items": ["patients/"], "write": True},
        {"user": "ward", "items": ["config"]},
        {"user": "nobody-here", "items": ["*"]},
        {"user": 7, "tables": ["t"]},
    )
    assert unknown == ["g2"]
    grants.require_item(100, "patients/17", write=True)
    grants.require_item(100, "config")
    grants.require_table(7, "t")
    for user, name, write in [
        (100, "config", True),
        (100, "patients", False),
        (100, "other", False),
        (7, "t", False),
        (0, "config", False),
    ]:
        assert code_of(lambda u=user, n=name, w=write: grants.require_item(u, n, write=w)).code == "agent.vault.denied"
    for user, table, write in [(7, "t", True), (7, "tt", False), (100, "t", False)]:
        assert (
            code_of(lambda u=user, t=table, w=write: grants.require_table(u, t, write=w)).code == "agent.vault.denied"
        )
    grants.require_any(7)
    assert code_of(grants.require_any, 0).code == "agent.vault.denied", "not even root, whom nobody named"


@pytest.mark.parametrize(
    ("items", "prefix", "expected"),
    [
        (["*"], "", [("", False)]),
        (["*"], "a/", [("a/", False)]),
        (["a/", "a/b/", "a/c"], "", [("a/", False)]),
        (["a/b/", "a/"], "a/b/c", [("a/b/c", False)]),
        (["z", "a/", "m"], "", [("a/", False), ("m", True), ("z", True)]),
        (["a", "a/"], "a", [("a", True), ("a/", False)]),
        (["a/"], "b", []),
        (["config"], "conf", [("config", True)]),
        (["config"], "config2", []),
    ],
)
def test_where_a_list_looks(items, prefix, expected):
    grants, _ = grants_of({"user": 1, "items": items})
    assert [(scope.prefix, scope.is_name) for scope in grants.scopes(1, prefix)] == expected
    assert grants.scopes(2, prefix) == []


def test_a_scope_that_was_read_is_passed_over():
    assert Scope(prefix="a/", is_name=False).is_before("b")
    assert not Scope(prefix="a/", is_name=False).is_before("a/x")
    assert Scope(prefix="a", is_name=True).is_before("a")
    assert not Scope(prefix="b", is_name=True).is_before("a")


def test_requests():
    assert parse_request(b'{"op":"vault-read","name":"a"}') == ReadItem(name="a")
    write = parse_request(b'{"op":"vault-write","name":"a","content":"AAE="}')
    assert (write, name_of(write)) == (WriteItem(name="a", content=b"\0\1"), "vault-write")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"[]",
        b"{}",
        b'{"op":"vault-red","name":"a"}',
        b'{"op":"vault-read"}',
        b'{"op":"vault-read","name":""}',
        b'{"op":"vault-read","name":"a","more":1}',
        b'{"op":"vault-read","name":"a","offset":-1}',
        b'{"op":"vault-read","name":"a","count":0}',
        b'{"op":"vault-read","name":"a","count":%d}' % (MAX_PIECE_BYTES + 1),
        b'{"op":"vault-write","name":"a","content":"not base64!"}',
        b'{"op":"vault-write","name":"a","content":"","append":true,"offset":1}',
        b'{"op":"vault-write","name":"a"}',
        b'{"op":"record-transaction","table":"t","changes":[]}',
        b'{"op":"record-transaction","table":"t","changes":[{"key":"a"}]}',
        b'{"op":"record-transaction","table":"t","changes":[{"key":"a","value":"","delete":true}]}',
        b'{"op":"record-get","table":"t","key":1}',
        b'{"op":"vault-read","name":"\xff"}',
        b'{"op":"vault-read","name":"\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 20_000,
    ],
    ids=lambda line: repr(line[:60]),
)
def test_what_is_no_request(line):
    assert code_of(parse_request, line).code == "agent.vault.malformed"
