"""MUD files on the real kernel: what a file allows talks, everything else does not; and the verbs, end to end."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tidegate.base.program import run_program
from tidegate.cli import firewall_mud
from tidegate.cli.output import Output
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.errors import MudSignatureBad, MudUnsigned, MudUnsupported
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_import import Role, Site, plan_import
from tidegate.firewall.nft import Nft
from tidegate.policy.document import parse_policy
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

FOLDER = Path(__file__).parents[1] / "unit" / "firewall" / "mud"
NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
REFUSED_S = 0.15
STOPPED_S = 0.05  # more than a wait takes longer than it should

# One device; its gateway; and, on the gateway's other side, a controller, a cloud and a stranger.
DEVICE, DEVICE6, GATEWAY, GATEWAY6 = "192.168.9.20", "fd00:9::20", "192.168.9.1", "fd00:9::1"
OUTSIDE, OUTSIDE6 = "198.51.100.1", "2001:db8:9::1"
CONTROLLER, CLOUD, STRANGER = "198.51.100.5", "198.51.100.6", "198.51.100.7"
CONTROLLER6, CLOUD6, STRANGER6 = "2001:db8:9::5", "2001:db8:9::6", "2001:db8:9::7"
MAC = "02:00:00:00:09:20"
EVERYBODY = (CONTROLLER, CLOUD, STRANGER, CONTROLLER6, CLOUD6, STRANGER6)
RESOLVED = {
    name: {ip_address(one): 600 for one in (CLOUD, CLOUD6)}
    for name in ("relay.cameras.example", "firmware.cameras.example", "stun.cameras.example")
}
SITE: dict[str, Any] = {
    "my_controller": (CONTROLLER, CONTROLLER6),
    "local_networks": ("192.168.9.0/24", "fd00:9::/64", CONTROLLER, CONTROLLER6),
    "classes": {"urn:ietf:params:mud:dns": (GATEWAY, GATEWAY6), "urn:ietf:params:mud:ntp": (CLOUD, CLOUD6)},
}


class Lab:
    """Three namespaces in a row; every side listens on the ports that are tried."""

    def __init__(self, device: Namespace, gateway: Namespace, outside: Namespace) -> None:
        self.device, self.gateway, self.outside = device, gateway, outside
        self.open: list[socket.socket] = []

    def load(self, where: Namespace, text: str) -> None:
        with where.inside():
            nft = Nft.open()
        nft.check(text)
        nft.run(text)
        nft.close()

    def listen(self, where: Namespace, addresses: Sequence[str], *ports: int) -> None:
        """Listen for each address apart: an answer has to come from the address that was asked."""
        with where.inside():
            for address, port in itertools.product(addresses, ports):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                server = socket.create_server((address, port), family=family)
                datagrams = socket.socket(family, socket.SOCK_DGRAM)
                datagrams.bind((address, port))
                self.open += [server, datagrams]
                threading.Thread(target=_repeat, args=(datagrams,), daemon=True).start()

    def talks(self, where: Namespace, source: str, to: str, protocol: str, port: int) -> bool:
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with where.inside():
            client = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        with client:
            client.settimeout(REFUSED_S)
            client.bind((source, 0))
            try:
                client.connect((to, port))
                if protocol == "udp":
                    client.send(b"?")
                    return _answer(client) == b"?"
            except OSError:  # silence, or a refusal by the gateway or by the device's own rules
                return False
            return True


def _answer(client: socket.socket) -> bytes:
    """Return what came within the time; where both sides were stopped meanwhile, the time begins anew."""
    while True:
        asked = time.monotonic()
        try:
            return client.recv(10)
        except TimeoutError:
            if time.monotonic() - asked < REFUSED_S + STOPPED_S:
                raise


def _repeat(datagrams: socket.socket) -> None:
    while True:
        try:
            said, sender = datagrams.recvfrom(100)
            if not sender:  # shut down
                return
            datagrams.sendto(said, sender)
        except PermissionError:  # an answer that the ruleset refuses
            continue
        except OSError:
            return


@pytest.fixture
def lab() -> Iterator[Lab]:
    with (
        Namespace.create(make_unique("tgmud-dev")) as device,
        Namespace.create(make_unique("tgmud-gw")) as gateway,
        Namespace.create(make_unique("tgmud-out")) as outside,
    ):
        join(
            gateway,
            device,
            interfaces=("iot0", "eth0"),
            addresses_a=[f"{GATEWAY}/24", f"{GATEWAY6}/64"],
            addresses_b=[f"{DEVICE}/24", f"{DEVICE6}/64"],
        )
        far4, far6 = [f"{one}/24" for one in EVERYBODY[:3]], [f"{one}/64" for one in EVERYBODY[3:]]
        join(
            gateway,
            outside,
            interfaces=("wan0", "eth0"),
            addresses_a=[f"{OUTSIDE}/24", f"{OUTSIDE6}/64"],
            addresses_b=[*far4, *far6],
        )
        gateway.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        device.run(["ip", "link", "set", "eth0", "address", MAC])
        for space, via in ((device, (GATEWAY, GATEWAY6)), (outside, (OUTSIDE, OUTSIDE6))):
            space.run(["ip", "route", "add", "default", "via", via[0]])
            space.run(["ip", "-6", "route", "add", "default", "via", via[1]])
        made = Lab(device, gateway, outside)
        yield made
        for one in made.open:
            with contextlib.suppress(OSError):  # "not connected", but it wakes the thread that waits
                one.shutdown(socket.SHUT_RDWR)
            one.close()


# What the camera's file means, in words of its own: who begins, protocol, port -> who is at the other end.
CAMERA = {
    ("out", "tcp", 443): {CLOUD, CLOUD6},
    ("out", "udp", 3478): {CLOUD, CLOUD6},
    ("out", "udp", 123): {CLOUD, CLOUD6},
    ("in", "tcp", 443): {CONTROLLER, CONTROLLER6},
    ("in", "tcp", 554): {CONTROLLER, CONTROLLER6},
}
TRIED = [
    *CAMERA,
    *((way, protocol, port) for way in ("in", "out") for protocol, port in (("tcp", 80), ("udp", 554), ("udp", 53))),
]


def _everything(lab: Lab) -> dict[tuple[str, str, int], set[str]]:
    """Return who could talk about what."""
    found: dict[tuple[str, str, int], set[str]] = {}
    for way, protocol, port in TRIED:
        for other in EVERYBODY:
            own = DEVICE6 if ":" in other else DEVICE
            where, source, to = (lab.device, own, other) if way == "out" else (lab.outside, other, own)
            if lab.talks(where, source, to, protocol, port):
                found.setdefault((way, protocol, port), set()).add(other)
    return found


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize(("role", "by_mac"), [(Role.DEVICE, False), (Role.GATEWAY, False), (Role.GATEWAY, True)])
def test_a_camera_talks_as_its_file_says_and_no_more(lab: Lab, role: Role, by_mac: bool) -> None:
    ports = sorted({port for _, _, port in TRIED})
    lab.listen(lab.device, (DEVICE, DEVICE6), *ports)
    lab.listen(lab.outside, EVERYBODY, *ports)
    site = dict(SITE)
    if role is Role.GATEWAY:
        site |= {"device": (DEVICE, DEVICE6, *([MAC] if by_mac else [])), "zone": "iot", "gateway": (GATEWAY, GATEWAY6)}
    made = plan_import(parse_mud((FOLDER / "camera.json").read_bytes()), Site(role=role, **site), now=NOW)
    zones = '[firewall.zones.iot]\ninterfaces = ["iot0"]\n' if role is Role.GATEWAY else ""
    section = parse_policy(f"[policy]\nversion = 1\n{zones}{made.text}").firewall
    assert section is not None
    assert _everything(lab) == {key: set(EVERYBODY) for key in TRIED}  # else a refusal below would prove nothing
    where = lab.device if role is Role.DEVICE else lab.gateway
    lab.load(where, encode_ruleset(plan_ruleset(section), resolved=RESOLVED))
    assert _everything(lab) == CAMERA


def test_the_gateways_own_resolver_answers_the_device_alone(lab: Lab) -> None:
    lab.listen(lab.gateway, (GATEWAY, GATEWAY6), 53, 80)
    site = Site(role=Role.GATEWAY, device=(DEVICE, DEVICE6), gateway=(GATEWAY, GATEWAY6), **SITE)
    made = plan_import(parse_mud((FOLDER / "camera.json").read_bytes()), site, now=NOW)
    lab.load(lab.gateway, encode_ruleset(plan_ruleset(made.section), resolved=RESOLVED))
    for own, to, foreign in ((DEVICE, GATEWAY, STRANGER), (DEVICE6, GATEWAY6, STRANGER6)):
        assert lab.talks(lab.device, own, to, "udp", 53)
        assert not lab.talks(lab.device, own, to, "tcp", 80)
        assert not lab.talks(lab.outside, foreign, to, "udp", 53)


def test_every_file_loads_into_the_kernel_for_either_role(lab: Lab) -> None:
    classes = {
        "urn:ietf:params:mud:dns": (GATEWAY,),
        "urn:ietf:params:mud:ntp": (GATEWAY,),
        "urn:ietf:params:mud:gateway": (GATEWAY,),
        "https://automation.example/scada": (CONTROLLER,),
    }
    site = {**SITE, "classes": classes, "same_manufacturer": ("192.168.9.30",)}
    files = sorted(FOLDER.glob("*.json"))
    assert len(files) >= 6
    for path in files:
        mud = parse_mud(path.read_bytes())
        for role, more in ((Role.DEVICE, {}), (Role.GATEWAY, {"device": (DEVICE, DEVICE6)})):
            made = plan_import(mud, Site(role=role, **site, **more), now=NOW)
            lab.load(lab.gateway, encode_ruleset(plan_ruleset(made.section)))


# -- the verbs --------------------------------------------------------------------------------------------------------


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", default=False)
    firewall_mud.add(parser.add_subparsers())
    arguments = parser.parse_args(["mud", *words])
    status: int = arguments.run(arguments, Output(as_json=arguments.json))
    return status


POLICY = """\
[policy]
version = 1
[firewall]
ping_per_s = 0
[firewall.peers]
controller-scada = ["10.1.0.5"]
[firewall.services.modbus]
protocol = "tcp"
ports = [502]
peers = ["@controller-scada"]
limit = { new_per_s = 5 }
[firewall.egress.services.cloud]
protocol = "tcp"
ports = [443]
peers = ["cloud.example.com"]
"""
EXPORT = ("--url", "https://things.example.com/t1.json", "--manufacturer", "Example", "--model", "T1")
SCADA = "https://automation.example/scada"


@pytest.fixture
def signer(tmp_path: Path) -> dict[str, Path]:
    """Return the files of a trust anchor and of a signer that it certifies, made by OpenSSL."""
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "ca-key", "cert", "key", "request")}
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (tmp_path / "usage").write_text("keyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n")
    anchor = ["-x509", "-days", "30", "-subj", "/CN=Example MUD CA", "-out", str(files["ca"])]
    run_program([*new, *anchor, "-keyout", str(files["ca-key"])])
    request = ["-subj", "/O=Example/CN=mud signer", "-out", str(files["request"])]
    run_program([*new, *request, "-keyout", str(files["key"])])
    issue = ["-in", str(files["request"]), "-CA", str(files["ca"]), "-CAkey", str(files["ca-key"]), "-days", "20"]
    extensions = ["-extfile", str(tmp_path / "usage"), "-out", str(files["cert"])]
    run_program(["openssl", "x509", "-req", *issue, *extensions])
    return files


def test_export_sign_verify_import(tmp_path: Path, signer: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    mud, signature, fragment = tmp_path / "t1.json", tmp_path / "t1.p7s", tmp_path / "t1.toml"
    sign = ("--sign-key", str(signer["key"]), "--sign-cert", str(signer["cert"]))
    scada = ("--class", f"controller-scada={SCADA}")
    assert _run("export", str(tmp_path / "policy.toml"), *EXPORT, *sign, *scada, "-o", str(mud)) == 0
    assert "limit" in capsys.readouterr().err  # what a MUD file cannot say
    assert json.loads(mud.read_text())["ietf-mud:mud"]["mud-signature"] == "https://things.example.com/t1.p7s"
    trust = ("--signature", str(signature), "--trust", str(signer["ca"]))
    given = ("--as", "device", "--controller", f"{SCADA}=10.1.0.5")
    assert _run("import", str(mud), *trust, *given, "-o", str(fragment)) == 0
    text = fragment.read_text()
    assert "mud signer" in text.splitlines()[1]
    section = parse_policy(f"[policy]\nversion = 1\n{text}").firewall
    assert section is not None
    assert [(one.ports, one.peers) for one in section.services.values()] == [((502,), ("@controller-scada",))]
    assert section.peers == {"controller-scada": ("10.1.0.5",)}
    assert [one.peers for one in section.egress.services.values()] == [("cloud.example.com",)]
    mud.write_bytes(mud.read_bytes().replace(b"502", b"503"))
    with pytest.raises(MudSignatureBad):
        _run("import", str(mud), *trust, *given)


def test_openssl_itself_verifies_our_signature(tmp_path: Path, signer: dict[str, Path]) -> None:
    """The command line is RFC 8520's own, section 13.2."""
    (tmp_path / "policy.toml").write_text(POLICY)
    mud = tmp_path / "t1.json"
    sign = ("--sign-key", str(signer["key"]), "--sign-cert", str(signer["cert"]))
    assert _run("export", str(tmp_path / "policy.toml"), *EXPORT, *sign, "-o", str(mud)) == 0
    words = ["-in", str(tmp_path / "t1.p7s"), "-inform", "DER", "-content", str(mud), "-binary", "-purpose", "any"]
    run_program(["openssl", "cms", "-verify", *words, "-CAfile", str(signer["ca"]), "-out", str(tmp_path / "out")])
    assert (tmp_path / "out").read_bytes() == mud.read_bytes()


def test_a_signature_made_by_openssl_is_taken(tmp_path: Path, signer: dict[str, Path]) -> None:
    """The command line is RFC 8520's own, section 13.1."""
    mud, signature = FOLDER / "bulb-v6.json", tmp_path / "bulb.p7s"
    words = ["-signer", str(signer["cert"]), "-inkey", str(signer["key"]), "-in", str(mud), "-binary"]
    run_program(["openssl", "cms", "-sign", *words, "-outform", "DER", "-out", str(signature)])
    trust = ("--signature", str(signature), "--trust", str(signer["ca"]))
    assert _run("import", str(mud), *trust, "--as", "device", "-o", str(tmp_path / "bulb.toml")) == 0
    assert _run("check", str(mud), *trust) == 0


def test_an_unsigned_file_needs_the_word_for_it(tmp_path: Path, signer: dict[str, Path]) -> None:
    words = ("import", str(FOLDER / "bulb-v6.json"), "--as", "device", "-o", str(tmp_path / "bulb.toml"))
    with pytest.raises(MudUnsigned):
        _run(*words)
    assert not (tmp_path / "bulb.toml").exists()
    for half in (("--signature", str(signer["cert"])), ("--trust", str(signer["ca"]))):
        with pytest.raises(MudUnsigned):
            _run(*words, *half)
    assert _run(*words, "--insecure-unsigned") == 0
    assert "NOT SIGNED" in (tmp_path / "bulb.toml").read_text()


def test_what_is_left_out_shows_in_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("import", str(FOLDER / "plc.json"), "--insecure-unsigned", "--as", "device", "--my-controller", "10.0.0.1")
    with pytest.raises(MudUnsupported):
        _run(*words)
    assert _run(*words, "--partial", "-o", str(tmp_path / "plc.toml")) == 1
    assert f"--controller {SCADA}=PEERS" in capsys.readouterr().err
    assert _run("check", "--json", str(FOLDER / "plc.json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert ["to-device", "IPv4", "tcp", "502", "controller", SCADA] in told["openings"]
