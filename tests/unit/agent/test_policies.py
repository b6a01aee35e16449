"""Which policy is in force: real nftables in a namespace, real guards, every refusal with nothing changed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tidegate.agent.policies import PolicyKeeper
from tidegate.base.clock import SystemClock
from tidegate.base.errors import TidegateError
from tidegate.crypto.cose import sign_envelope
from tidegate.firewall import guard
from tidegate.firewall.compile import TABLE
from tidegate.firewall.nft import Nft
from tidegate.policy.sign import CONTEXT

pytestmark = pytest.mark.root


class SteppedClock(SystemClock):
    """The machine's clock, ahead by what a test says."""

    ahead_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def make_keeper(netns, device, log, clock):
    opened = []

    def make() -> PolicyKeeper:
        opened.append(Nft.open())
        return PolicyKeeper(device.home, log, clock, opened[-1])

    yield make
    for nft in opened:
        nft.close()


@pytest.fixture
def keeper(make_keeper) -> PolicyKeeper:
    made = make_keeper()
    made.start()
    return made


def rules() -> str:
    nft = Nft.open()
    try:
        return nft.list_table(TABLE) or ""
    finally:
        nft.close()


def wait_for_guard(device) -> None:
    deadline = time.monotonic() + 10
    while guard.guard_lives(str(device.home.firewall_state)) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_factory_policy_is_in_force_after_the_start(keeper, device) -> None:
    assert "8080" in rules()
    assert keeper.confirmed.policy.policy.version == 1
    assert keeper.candidate is None
    assert device.kinds()[-1] == "policy.applied"
    assert device.events()[-1]["unmapped"]["tidegate"]["data"]["digest"] == keeper.effective_digest()


def refused_rows(device):
    good = device.policy(2, port=9090)
    return [
        ("other signer", device.policy(2, signer=device.maker), "crypto.signature.unknown-key"),
        ("altered", good[:-20] + bytes([good[-20] ^ 1]) + good[-19:], "crypto.signature.invalid"),
        ("cut", good[:-1], "crypto.cbor.malformed"),
        ("empty", b"", "crypto.cbor.malformed"),
        ("an image", sign_envelope("tidegate.image.v1", b"\xa0", device.owner.signers), "crypto.envelope.context"),
        ("no policy", sign_envelope(CONTEXT, b"\xa0", device.owner.signers), "policy.value.invalid"),
        ("for others", device.policy(2, head="").replace(b"gateway-*", b"gateway-#"), "crypto.signature.invalid"),
        ("older", device.policy(1), "policy.version.rollback"),
        ("expired", device.policy(3, head="expires = 2020-01-01T00:00:00Z"), "policy.expired"),
    ]


def test_what_is_refused_changes_nothing(keeper, device) -> None:
    keeper.apply(device.policy(2, port=9090))
    keeper.confirm()
    before, kept = rules(), device.home.policy_paths[0].read_bytes()
    for title, raw, code in refused_rows(device):
        with pytest.raises(TidegateError) as caught:
            keeper.apply(raw)
        assert caught.value.code == code, title
        assert keeper.candidate is None
        assert rules() == before, title
        assert device.home.policy_paths[0].read_bytes() == kept


def test_a_policy_for_another_device_is_refused(keeper, device) -> None:
    (device.home.storage.rom / "device-id").chmod(0o644)
    (device.home.storage.rom / "device-id").write_text("pump-7")
    with pytest.raises(TidegateError) as caught:
        keeper.apply(device.policy(2))
    assert caught.value.code == "policy.device.mismatch"


def test_confirmed_stays_over_a_reboot(keeper, make_keeper, device) -> None:
    candidate = keeper.apply(device.policy(2, port=9090))
    assert candidate.change.is_pending
    assert "9090" in rules()
    assert device.home.policy_paths[0].read_bytes() != candidate.raw
    keeper.confirm()
    assert device.home.policy_paths[0].read_bytes() == candidate.raw
    flush()
    again = make_keeper()
    again.start()
    assert again.confirmed.policy.policy.version == 2
    assert "9090" in rules()


def flush() -> None:
    """The kernel of a machine that was switched off holds nothing."""
    nft = Nft.open()
    nft.run("flush ruleset\n")
    nft.close()


def test_not_confirmed_in_time_comes_back_by_itself(keeper, device) -> None:
    before = keeper.effective_digest()
    keeper.apply(device.policy(2, port=9090, timeout=3))
    assert keeper.notice_expiry() is False
    assert keeper.effective_digest() != before
    wait_for_guard(device)
    assert keeper.effective_digest() == before
    with pytest.raises(TidegateError) as caught:
        keeper.confirm()
    assert caught.value.code == "firewall.commit.expired"
    assert keeper.notice_expiry() is True
    assert keeper.notice_expiry() is False
    assert keeper.policy.policy.version == 1
    assert device.kinds()[-1] == "policy.rolled-back"


def test_rolled_back_when_asked(keeper, device) -> None:
    before = keeper.effective_digest()
    keeper.apply(device.policy(2, port=9090))
    keeper.rollback()
    assert keeper.effective_digest() == before
    assert keeper.policy.policy.version == 1
    assert device.kinds()[-1] == "policy.rolled-back"
    for ask in (keeper.rollback, keeper.confirm):
        with pytest.raises(TidegateError) as caught:
            ask()
        assert caught.value.code == "agent.policy.nothing-pending"


def test_a_policy_without_firewall_has_to_be_confirmed_as_well(keeper, device, clock) -> None:
    keeper.apply(device.policy(2, port=None))
    assert keeper.policy.policy.version == 2
    clock.ahead_s += 3600
    with pytest.raises(TidegateError) as caught:
        keeper.confirm()
    assert caught.value.code == "firewall.commit.expired"
    assert keeper.notice_expiry() is True
    assert keeper.policy.policy.version == 1
    keeper.apply(device.policy(2, port=None))
    assert keeper.notice_expiry() is False
    keeper.confirm()
    assert keeper.policy.policy.version == 2
    assert "8080" in rules(), "a room without a section is left alone"


def test_a_power_cut_while_a_policy_waits_brings_back_the_confirmed_one(keeper, make_keeper, device) -> None:
    keeper.apply(device.policy(2, port=9090, timeout=60))
    kill_guard(device)
    flush()
    again = make_keeper()
    again.start()
    assert again.confirmed.policy.policy.version == 1
    assert "8080" in rules()
    assert "9090" not in rules()
    again.apply(device.policy(2, port=9090))
    again.confirm()


def kill_guard(device) -> None:
    state = os.fsencode(device.home.firewall_state)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/cmdline", "rb") as stream:  # noqa: PTH123
                    words = stream.read().split(b"\0")
            except OSError:
                continue
            if state in words:
                os.kill(int(entry.name), signal.SIGKILL)
    wait_for_guard(device)


@pytest.fixture
def second_policy(make_keeper, device) -> None:
    """Policy 2, confirmed, with an expiry next year; then the power goes."""
    first = make_keeper()
    first.start()
    year = time.gmtime().tm_year + 1
    first.apply(device.policy(2, port=9090, head=f"expires = {year}-01-01T00:00:00Z"))
    first.confirm()
    flush()


def test_an_expired_policy_stays_in_force_and_is_reported(second_policy, make_keeper, device, clock) -> None:
    clock.ahead_s += 400 * 24 * 3600
    again = make_keeper()
    again.start()
    assert "9090" in rules()
    assert again.confirmed.policy.policy.version == 2
    assert "agent.failed" in device.kinds()[-2:]


def test_one_damaged_copy_costs_nothing(second_policy, make_keeper, device) -> None:
    device.home.policy_paths[0].write_bytes(b"rubbish")
    again = make_keeper()
    again.start()
    assert "9090" in rules()


@pytest.mark.parametrize("fault", ["files damaged", "files gone", "trust anchors gone", "older copy put back"])
def test_a_policy_refused_at_boot_closes_the_device(second_policy, make_keeper, device, fault: str) -> None:
    for path in device.home.policy_paths:
        if fault == "files damaged":
            path.write_bytes(b"rubbish")
        elif fault == "files gone":
            path.unlink()
        elif fault == "older copy put back":
            path.write_bytes(device.policy(1))
    if fault == "trust anchors gone":
        (device.home.storage.rom / "policy-anchors.cbor").unlink()
    again = make_keeper()
    with pytest.raises(TidegateError):
        again.start()
    assert again.policy is None
    assert "policy drop" in rules()
    assert "9090" not in rules()
    assert "8080" not in rules()


def test_the_same_version_with_another_content_is_refused(keeper, device) -> None:
    keeper.apply(device.policy(2, port=9090))
    keeper.confirm()
    with pytest.raises(TidegateError) as caught:
        keeper.apply(device.policy(2, port=9191))
    assert caught.value.code == "policy.version.rollback"


def test_without_any_policy_nothing_comes_in(make_keeper, device) -> None:
    for path in device.home.policy_paths:
        path.unlink(missing_ok=True)
    with pytest.raises(TidegateError) as caught:
        make_keeper().start()
    assert caught.value.code == "base.storage.missing"
    assert "policy drop" in rules()
    assert "8080" not in rules()
