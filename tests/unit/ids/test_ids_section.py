"""The [ids] section: what it accepts, what it refuses, and that the sensor agrees on the bounds."""

from __future__ import annotations

import json

import msgspec
import pytest

from tidegate.ids.errors import ConfigInvalid
from tidegate.ids.section import Detectors, Flood, IdsSection, Scan, WatchSection, plan_sensor

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")


def test_the_default_section_is_a_valid_plan():
    plan = plan_sensor(IdsSection(allow=("192.0.2.0/24", "2001:db8::1")))
    assert plan.memory_bytes == 8 << 20
    assert [str(network) for network in plan.allow] == ["192.0.2.0/24", "2001:db8::1/128"]
    assert json.loads(plan.config_json)["scan"] == {"ports": 8, "window_s": 10, "flag_packets": 5}


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (IdsSection(memory="24 MB"), "memory"),
        (IdsSection(memory="1MiB"), "memory"),
        (IdsSection(memory="2048MiB"), "memory"),
        (IdsSection(memory="-24MiB"), "memory"),
        (IdsSection(memory="24MiB\n"), "memory"),
        (IdsSection(home_net=("192.0.2.1/24",)), "home_net"),
        (IdsSection(allow=("10.0.0.1/8",)), "allow"),
        (IdsSection(allow=("anything",)), "allow"),
        (IdsSection(flood=Flood(high_per_s=50, low_per_s=50)), "flood.low_per_s"),
    ],
)
def test_what_a_type_cannot_refuse_is_refused_with_its_field(section, field):
    with pytest.raises(ConfigInvalid) as caught:
        plan_sensor(section)
    assert (caught.value.code, caught.value.fields["field"]) == ("ids.config.invalid", field)


@pytest.mark.parametrize(
    "document",
    [
        {"unknown": 1},
        {"scan": {"ports": 2}},
        {"scan": {"ports": 65}},
        {"scan": {"window_s": 3601}},
        {"scan": {"flag_packets": 0}},
        {"flood": {"high_per_s": 0}},
        {"flood": {"window_s": 61}},
        {"flood": {"udp_high_per_s": 10_000_001}},
        {"ban_s": 0},
        {"respond": "shout"},
        {"interfaces": ["eth0; reboot"]},
        {"memory": 24},
        {"rules": ["relative.rules"]},
        {"settings": {"a b": "x"}},
        {"settings": {"a": 1}},
        {"detectors": {"moon": True}},
    ],
)
def test_types_and_ranges_are_msgspec_s_to_refuse(document):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(document, IdsSection)


def test_watched_paths_are_absolute():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"paths": ["etc"]}, WatchSection)


@pytest.mark.parametrize(
    "section",
    [
        IdsSection(memory="2MiB"),
        IdsSection(memory="1024MiB"),
        IdsSection(scan=Scan(ports=3, window_s=1, flag_packets=1)),
        IdsSection(scan=Scan(ports=64, window_s=3600, flag_packets=1_000_000)),
        IdsSection(flood=Flood(high_per_s=1, low_per_s=0, window_s=1, udp_high_per_s=0, icmp_high_per_s=0)),
        IdsSection(
            flood=Flood(
                high_per_s=10_000_000,
                low_per_s=9_999_999,
                window_s=60,
                udp_high_per_s=10_000_000,
                icmp_high_per_s=10_000_000,
            )
        ),
    ],
)
def test_the_sensor_accepts_the_ends_of_every_range(section):
    stats = sensor_module.Sensor(plan_sensor(section).config_json).stats()
    assert stats["memory"]["divided_bytes"] <= stats["memory"]["budget_bytes"]


@pytest.mark.parametrize(
    "config",
    ['{"memory_bytes":1}', '{"scan":{"ports":65}}', '{"unknown":1}', '{"flood":{"low_per_s":200}}', "[]", "", "nul"],
)
def test_the_sensor_refuses_what_is_outside(config):
    with pytest.raises(sensor_module.SensorError) as caught:
        sensor_module.Sensor(config)
    assert caught.value.args[0] == "ids.config.invalid"


def test_rules_settings_and_detectors_become_settings():
    section = IdsSection(
        rules=("/etc/a.rules",),
        settings={"stream.midstream": "yes", "tidegate.flow-events": "off"},
        home_net=("192.0.2.0/24", "2001:db8::1"),
        detectors=Detectors(scan=False),
    )
    plan = plan_sensor(section)
    assert (plan.memory_bytes, [str(path) for path in plan.rules]) == (24 << 20, ["/etc/a.rules"])
    settings = dict(plan.settings)
    assert json.loads(settings.pop("detectors.config"))["scan"]["ports"] == 8
    assert settings == {
        "tidegate.detectors.scan": "no",
        "tidegate.detectors.flood": "yes",
        "tidegate.flow-events": "off",
        "vars.address-groups.HOME_NET": "[192.0.2.0/24,2001:db8::1/128]",
        "stream.midstream": "yes",
    }
