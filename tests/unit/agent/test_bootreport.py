"""From the boot log to events."""

from __future__ import annotations

from tidegate.agent.bootreport import plan_boot_events
from tidegate.agent.daemon import report_boot
from tidegate.boot.measure import Began, Measurement, Refusal, Started
from tidegate.cli.error import load_all_codes

MEASURED = Measurement(stage="stage1", register=8, what="manifest 1.0.0", digest="ab" * 32)
REFUSED = Refusal(stage="stage2", slot="b", code="boot.os.corrupt", message="data block 3 does not hold")
STARTED = Started(stage="stage2", slot="a", version="1.0.0")


def kinds(*entries) -> list[str]:
    return [event.kind for event in plan_boot_events(entries)]


def test_a_good_boot() -> None:
    assert kinds(Began(), MEASURED, STARTED) == ["boot.stage.verified"]


def test_a_refusal_and_what_started_instead() -> None:
    events = list(plan_boot_events([Began(), MEASURED, REFUSED, Began(), MEASURED, STARTED]))
    assert [event.kind for event in events] == [
        "boot.stage.verified",
        "boot.stage.refused",
        "boot.stage.verified",
        "boot.fell-back",
    ]
    assert events[1].code == "boot.os.corrupt"
    assert "slot b" in events[1].message


def test_one_fall_back_is_told_once() -> None:
    assert kinds(REFUSED, STARTED, Began(), STARTED) == ["boot.stage.refused", "boot.fell-back"]


def test_a_slot_that_was_refused_and_started_later_is_no_fall_back() -> None:
    assert kinds(REFUSED, Started(stage="stage2", slot="b", version="2.0.0")) == ["boot.stage.refused"]


def test_a_refusal_by_a_fault_keeps_its_code() -> None:
    (event,) = plan_boot_events([Refusal(stage="stage1", slot="b", code="base.storage.failed", message="EIO")])
    assert event.code == "base.storage.failed"


def test_a_code_that_the_agent_does_not_know_is_told_as_such() -> None:
    (event,) = plan_boot_events([Refusal(stage="stage1", slot="b", code="boot.future.reason", message="new")])
    assert event.code == "agent.boot.unknown-refusal"
    assert "boot.future.reason" in event.message


def test_every_code_that_can_stand_in_a_log_becomes_an_event() -> None:
    for code in load_all_codes():
        (event,) = plan_boot_events([Refusal(stage="stage1", slot="a", code=code, message="x" * 5000)])
        assert event.code == code


def test_each_entry_is_reported_once_also_over_a_reset(device, log) -> None:
    """The watchdog's reset keeps the memory that holds the log, and what the second boot refused is told as well."""
    home = device.home
    home.boot_log(Began())
    home.boot_log(REFUSED)
    report_boot(home, log)
    report_boot(home, log)
    assert device.kinds() == ["boot.stage.refused"]
    home.boot_log(Began())
    home.boot_log(REFUSED)
    home.boot_log(STARTED)
    report_boot(home, log)
    assert device.kinds() == ["boot.stage.refused", "boot.stage.refused", "boot.fell-back"]


def test_a_log_that_gave_way_is_reported_from_its_start(device, log) -> None:
    home = device.home
    for _ in range(5):
        home.boot_log(REFUSED)
    report_boot(home, log)
    home.boot_log.path.unlink()
    home.boot_log(Began())
    home.boot_log(REFUSED)
    report_boot(home, log)
    assert device.kinds() == ["boot.stage.refused"] * 6
