"""The judge of Suricata's public suite, on made-up cases: what is wrong is reported, what is right passes."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

pytest.importorskip("yaml", reason="PyYAML is not installed")

from bench.suricata_verify.__main__ import main, summarise
from bench.suricata_verify.cases import find_cases, plan_invocation
from bench.suricata_verify.checks import Verdict, judge_checks, reason_not_to_run
from bench.suricata_verify.command import build_command
from bench.suricata_verify.groups import Group, group_of
from bench.suricata_verify.judge import judge_case
from bench.suricata_verify.matching import find_value, is_match
from bench.suricata_verify.requirements import reason_to_skip

ALERT = {
    "event_type": "alert",
    "src_port": 80,
    "alert": {"signature_id": 7, "metadata": {"tag": ["one", "two"], "n": [[1, 2]]}, "signature": "seven up"},
    "ok": True,
}
STATS = {"event_type": "stats", "stats": {"decoder": {"pkts": 3}, "capture": {"kernel_packets": 3}}}
RULE = 'alert http any any -> any any (msg:"a; b"; content:"x"; http.uri; sid:7;)\n'


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, ...]:
    """Prints two events, and exits as the rules say: 3 if they have the word refuse."""
    path = tmp_path / "program.py"
    text = f"""
import sys
from pathlib import Path
words = sys.argv
print({json.dumps(ALERT)!r})
print({json.dumps(STATS)!r})
rules = [Path(words[n + 1]).read_text() for n, word in enumerate(words) if word == "--rules"]
rules += [Path(word).read_text() for word in words if word.endswith(".rules")]
sys.stderr.write("said")
sys.exit(3 if any("refuse" in text for text in rules) else 9 if any("crash" in text for text in rules) else 0)
"""
    path.write_text(text)
    return (sys.executable, str(path))


def make(root: Path, text: str, *, name: str = "one", rules: str | None = RULE, capture: bool = True) -> Path:
    folder = root / "cases" / name
    folder.mkdir(parents=True)
    (folder / "test.yaml").write_text(text)
    if rules is not None:
        (folder / "test.rules").write_text(rules)
    if capture:
        (folder / "input.pcap").write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
    return folder


def judge(root: Path, program: tuple[str, ...]):
    (case,) = find_cases(root / "cases")
    return judge_case(case, program)


PASSES = """
checks:
  - filter: {count: 1, match: {event_type: alert, alert.signature_id: 7, src_port: "80"}}
  - filter: {count: 0, match: {event_type: http}}
  - stats: {decoder.pkts: 3}
"""


def test_a_case_that_is_right_passes(tmp_path, program):
    make(tmp_path, PASSES)
    result = judge(tmp_path, program)
    assert (result.verdict, result.reasons, result.group) == (Verdict.PASSED, [], Group.STRICT)
    assert [check.is_alert for check in result.checks] == [True, False, False]


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("filter: {count: 2, match: {event_type: alert}}", "1 instead of 2"),
        ("filter: {count: 0, match: {event_type: alert}}", "1 instead of 0"),
        ("filter: {count: 1, match: {event_type: alert, has-key: tls}}", "0 instead of 1"),
        ("filter: {count: 1, match: {event_type: alert, not-has-key: alert.metadata}}", "0 instead of 1"),
        ("filter: {count: 1, filename: other.json, match: {event_type: alert}}", "no other.json"),
        ("filter: {match: {event_type: alert}}", "KeyError"),
        ("stats: {decoder.pkts: 4}", "3 instead of 4"),
        ("stats: {decoder.absent: 4}", "None instead of 4"),
        ("shell: {args: grep -c alert eve.json, expect: 2}", "'1' instead of 2"),
        ("shell: {args: cat fast.log | wc -l | xargs, expect: 0}", "fast.log is nothing"),
        ("shell: {args: rm eve.json}", "rm is no text tool"),
        ("file-compare: {filename: eve.json, expected: absent.json}", "absent.json"),
        ("colour: {count: 1}", "not known"),
    ],
)
def test_a_check_that_fails_is_reported(tmp_path, program, check, words):
    make(tmp_path, f"checks:\n  - {check}\n")
    result = judge(tmp_path, program)
    assert result.verdict is Verdict.FAILED
    assert words in result.reasons[0]


def test_a_shell_check_over_the_events_runs(tmp_path, program):
    make(tmp_path, "checks:\n  - shell: {args: 'cat eve.json | grep -c alert | xargs', expect: 1}\n")
    assert judge(tmp_path, program).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("rules", "text", "verdict"),
    [
        ("refuse", "checks: []", Verdict.FAILED),
        ("refuse", "exit-code: 1", Verdict.PASSED),
        ("fine", "exit-code: 1", Verdict.FAILED),
        ("crash", "exit-code: 1", Verdict.FAILED),
    ],
)
def test_the_exit_status_counts(tmp_path, program, rules, text, verdict):
    make(tmp_path, text, rules=rules)
    assert judge(tmp_path, program).verdict is verdict


@pytest.mark.parametrize(
    ("requires", "is_skipped"),
    [
        ({"min-version": 8}, False),
        ({"min-version": "7.0.12"}, False),
        ({"min-version": "8.0.3"}, False),
        ({"min-version": 10}, True),
        ({"lt-version": 8}, True),
        ({"lt-version": "8.0.3"}, True),
        ({"lt-version": 10}, False),
        ({"gt-version": "6.0.11"}, False),
        ({"gt-version": "9.0.0"}, True),
        ({"version": "9.0"}, False),
        ({"version": 7}, True),
        ({"features": ["HAVE_NSS"]}, False),
        ({"features": ["HAVE_NSS", "HAVE_LUA"]}, True),
        ({"os": "linux"}, False),
        ({"os": "windows"}, True),
        ({"lambda": 'sys.platform != "win32"'}, False),
        ({"lambda": 'sys.platform == "win32"'}, True),
        ({"lambda": "__import__('os').getpid()"}, True),
        ({"files": ["src/detect.c"]}, False),
        ({"files": ["/nonexistent"]}, True),
        ({"script": ["grep X src/decode.h > /dev/null"]}, False),
        ({"script": ["grep X src/decode.h; touch y"]}, True),
        ({"pcap": False}, False),
        ({"moon": "full"}, True),
    ],
)
def test_what_does_not_apply_is_skipped_with_a_reason(requires, is_skipped):
    assert bool(reason_to_skip(requires)) is is_skipped


def test_a_check_that_does_not_apply_is_no_failure(tmp_path, program):
    make(tmp_path, "checks:\n  - filter: {requires: {min-version: 10}, count: 5, match: {event_type: alert}}\n")
    result = judge(tmp_path, program)
    assert (result.verdict, result.checks[0].verdict) == (Verdict.PASSED, Verdict.SKIPPED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_type", "alert"),
        ("alert.metadata.tag[1]", "two"),
        ("alert.metadata.tag[2]", None),
        ("alert.metadata.n[0][1]", 2),
        ("alert.metadata.tag.__len", 2),
        ("src_port.__len", -1),
        ("alert.absent.below", None),
        ("src_port.below", None),
        ("event_type[0]", None),
    ],
)
def test_names_reach_into_events(name, value):
    assert find_value(name, ALERT) == value


@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        ({"alert.signature_id": "7"}, True),
        ({"ok": True}, True),
        ({"alert.signature.__find": "en u"}, True),
        ({"alert.signature.__find": "eight"}, False),
        ({"alert.metadata.tag.__contains": "two"}, True),
        ({"alert.metadata.tag.__contains": "tw"}, False),
        ({"alert.signature.__startswith": "seven"}, True),
        ({"alert.signature.__endswith": "seven"}, False),
        ({"absent.__startswith": "x"}, False),
        ({"has-key": ["alert", "src_port"]}, True),
        ({"has-key": ["alert", "dns"]}, False),
        ({"not-has-key": ["dns", "tls"]}, True),
        ({"not-has-key": ["dns", "alert"]}, False),
        ({"alert.metadata.tag": ["one", "two"]}, True),
        ({"alert.metadata.tag": ["one"]}, False),
    ],
)
def test_filters_match_as_the_suite_says(wanted, is_found):
    assert is_match(wanted, ALERT) is is_found


def test_arguments_become_options(tmp_path):
    text = """
env:
  SURICATA_EVE_DNS_VERSION: 2
args:
  - -k none --set stream.midstream=true
  - --set threshold-file=${TEST_DIR}/threshold.config --runmode=single -vvv
  - --data-dir=${OUTPUT_DIR} port 22
  - --unheard-of=1
"""
    folder = make(tmp_path, text, name="an-ips-case")
    (folder / "suricata.yaml").write_text("%YAML 1.1\n---\n")
    (case,) = find_cases(tmp_path / "cases")
    plan = plan_invocation(case, Path("/out"))
    assert plan.settings == [
        "outputs.eve-log.types.dns.version=2",
        "stream.midstream=true",
        f"threshold-file={folder}/threshold.config",
        "default-data-dir=/out",
    ]
    assert (plan.checksums, plan.simulate_ips, plan.bpf) == ("none", True, ["port", "22"])
    assert plan.notes == ["option --unheard-of=1 is not known"]
    command = build_command(plan, Path("/out"), ("tidegate",))
    assert command[:6] == ["tidegate", "ids", "replay", str(folder / "input.pcap"), "--eve", "-"]
    assert command[command.index("--checksums") + 1] == "none"
    assert command[command.index("--config") + 1] == str(folder / "suricata.yaml")
    assert command[command.index("--filter") + 1] == "port 22"


def test_a_command_of_the_shell_is_read(tmp_path):
    text = """
command: |
  cat ${TEST_DIR}/input.pcap | ${SRCDIR}/src/suricata -c ${SRCDIR}/suricata.yaml \\
      -r /dev/stdin -S ${TEST_DIR}/other.rules -l ${OUTPUT_DIR} \\
      --set classification-file="${SRCDIR}/etc/classification.config" | grep x
"""
    folder = make(tmp_path, text)
    (case,) = find_cases(tmp_path / "cases")
    plan = plan_invocation(case, Path("/out"))
    assert (plan.capture, plan.rules) == (folder / "input.pcap", [folder / "other.rules"])
    assert (plan.config, plan.settings, plan.bpf, plan.notes) == (None, [], [], [])


def test_without_a_capture_the_rules_are_checked(tmp_path, program):
    make(tmp_path, "requires: {pcap: false}\nexit-code: 1\n", capture=False, rules="refuse")
    result = judge(tmp_path, program)
    assert result.verdict is Verdict.PASSED
    assert "check" in result.command


def test_nothing_passes_on_what_did_not_run(tmp_path, program):
    none = "checks:\n  - filter: {count: 0, match: {event_type: http}}\n"
    make(tmp_path, none, rules="crash")
    make(tmp_path, none, rules="refuse", name="two")
    for case in find_cases(tmp_path / "cases"):
        assert [check.verdict for check in judge_case(case, program).checks] == [Verdict.FAILED]


@pytest.mark.parametrize("text", ["checks: [", "- a list"])
def test_a_case_that_cannot_be_read_is_not_passed(tmp_path, program, text):
    make(tmp_path, text)
    assert judge(tmp_path, program).verdict is Verdict.FAILED


def test_a_missing_capture_is_the_corpus_fault(tmp_path, program):
    make(tmp_path, "pcap: ../absent.pcap\n", capture=False)
    result = judge(tmp_path, program)
    assert (result.verdict, result.reasons) == (Verdict.SKIPPED, ["the corpus lacks the capture"])


def test_neither_capture_nor_rules_is_not_passed(tmp_path, program):
    make(tmp_path, "requires: {pcap: false}\n", capture=False, rules=None)
    assert judge(tmp_path, program).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    "text",
    [
        "cat eve.json > elsewhere.json",
        "cat `ls` eve.json",
        "cat $(ls) eve.json",
        "awk 'BEGIN {system(\"ls\")}' eve.json",
        "cat eve.json | xargs rm",
        "cat /etc/passwd",
        "test ! -e log.pcap.0",
        "python3 eve.json",
        "cat 'eve.json",
    ],
)
def test_a_shell_that_is_no_harmless_pipe_is_not_run(tmp_path, text):
    (tmp_path / "eve.json").write_text("{}\n")
    assert reason_not_to_run(text, tmp_path) is not None


def test_a_damaged_line_fails_the_check(tmp_path):
    (tmp_path / "eve.json").write_text("{}\n{broken\n")
    (result,) = judge_checks([("filter", {"count": 0, "match": {"event_type": "x"}})], tmp_path, tmp_path)
    assert result.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("rules", "group"),
    [
        (RULE, Group.STRICT),
        (RULE.replace("http.uri", "http.uri; to_lowercase"), Group.CORE),
        (RULE.replace("http.uri", "http.brand_new"), Group.CORE),
        (RULE.replace("http.uri", "modbus"), Group.OTHER),
        (RULE.replace("alert http", "alert smb"), Group.OTHER),
        ('alert tcp any any -> any any (msg:"semi\\; colon"; pcre:"/a;b/R"; sid:1;)', Group.STRICT),
        ("# nothing\n", Group.OTHER),
    ],
)
def test_rules_decide_the_group(rules, group):
    assert group_of([rules]) is group


def test_a_folder_without_cases_is_an_error(tmp_path):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2


def test_the_totals_come_last(tmp_path, program):
    make(tmp_path, PASSES)
    make(tmp_path, PASSES.replace("count: 1", "count: 3"), name="deeper/two")
    make(tmp_path, "requires: {min-version: 10}\n", name="three")
    results = [judge_case(case, program) for case in find_cases(tmp_path / "cases")]
    lines = list(summarise(results))
    assert lines[-2:] == ["checks: 5 of 6", "cases: 1 of 2"]
    assert any("strict" in line and "alert checks 1 of 2" in line for line in lines)
    assert any("skipped    1  requires at least version 10" in line for line in lines)
