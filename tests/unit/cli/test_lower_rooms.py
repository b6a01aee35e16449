"""The commands of the lower rooms: exit codes and error codes, nothing half done, nothing secret shown."""

import contextlib
import io
import json
import re

import pytest

from tidegate.base.errors import registered_codes
from tidegate.cli.error import load_all_codes
from tidegate.cli.main import NOUNS, build_parser, main


class Shell:
    """Runs the command line in this process, in a folder with two maker's keys."""

    def __init__(self, root) -> None:
        self.root = root
        self.secret = root / "secret"
        self.secret.write_bytes(bytes(range(32)))
        self.secret.chmod(0o600)
        self.must("keys", "create-store", self.uri())
        for name, algorithm in (("classical", "ed25519"), ("quantum", "ml-dsa-65")):
            self.must("keys", "generate", self.uri(name), "--algorithm", algorithm)
            self.must("keys", "public", self.uri(name), "-o", root / f"{name}.pub")
        self.must("keys", "anchors", root / "classical.pub", root / "quantum.pub", "-o", root / "anchors")
        for name in ("stage2", "rootfs"):
            (root / name).write_bytes(name.encode() * 1000)
        (root / "sbom.json").write_text("{}")
        (root / "image.toml").write_text(
            'vendor = "Maker"\nproduct = "Gateway"\nhardware = ["board-r1"]\nversion = "1.0.0"\nsecurity_version = 2\n'
            'sbom = "sbom.json"\n'
            '[[payload]]\nname = "stage2"\nkind = "stage2"\nfile = "stage2"\n'
            '[[payload]]\nname = "rootfs"\nkind = "rootfs"\nfile = "rootfs"\n'
        )
        (root / "policy.toml").write_text('[policy]\nversion = 3\ndevices = ["gw-*"]\n')

    def uri(self, name=""):
        return f"file:{self.root}/store?{f'key={name}&' if name else ''}device-secret={self.secret}"

    def sign(self):
        return ("--sign", self.uri("classical"), "--sign", self.uri("quantum"))

    def run(self, *words):
        """Return (status, standard output, standard error)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(word) for word in words])
            except SystemExit as stop:
                status = stop.code
        return status, out.getvalue(), err.getvalue()

    def must(self, *words):
        status, out, err = self.run(*words)
        assert status == 0, err
        return out

    def refused(self, *words):
        """Return (exit status, error code) and check that both forms of the answer agree."""
        status, out, err = self.run(*words)
        found = re.search(r"\[([a-z0-9.-]+)\]\n", err)
        assert found, (status, out, err)
        assert "what to do: " in err
        again, out, err = self.run(*words, "--json")
        error = json.loads(out)["error"]
        assert (again, error["code"], err) == (status, found[1], "")
        assert set(error) == {"code", "message", "advice", "fields"}
        return status, found[1]


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def test_keys(shell):
    keys = json.loads(shell.must("keys", "list", shell.uri(), "--json"))["keys"]
    assert [key["algorithm"] for key in keys] == ["ed25519", "ml-dsa-65"]
    assert "classical" in shell.must("keys", "--json", "list", shell.uri())
    shell.must("keys", "generate", shell.uri("box"), "--algorithm", "seal")
    shell.must("keys", "destroy", shell.uri("box"), "--yes")
    assert shell.refused("keys", "destroy", shell.uri("box"), "--yes") == (4, "keys.key.missing")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("generate", "URI:classical"), (2, "keys.key.exists")),
        (("generate", "URI:"), (2, "keys.name.invalid")),
        (("generate", "URI:new", "--algorithm", "rsa"), (3, "crypto.algorithm.unknown")),
        (("generate", "URI:../x"), (2, "keys.name.invalid")),
        (("create-store", "URI:"), (2, "keys.key.exists")),
        (("list", "file:/nowhere"), (2, "keys.pin.missing")),
        (("list", "pkcs12:token=x"), (2, "keys.provider.unknown")),
        (("list", "file:/nowhere?device-secret=/nothing"), (4, "base.storage.missing")),
        (("public", "URI:none", "-o", "ROOT/x"), (4, "keys.key.missing")),
        (("public", "URI:classical", "-o", "ROOT/none/x"), (4, "base.storage.missing")),
        (("anchors", "ROOT/classical.pub", "-o", "ROOT/x"), (2, "crypto.trust.empty")),
        (("anchors", "ROOT/classical.pub", "ROOT/classical.pub", "-o", "ROOT/x"), (2, "crypto.trust.empty")),
        (("anchors", "ROOT/secret", "ROOT/quantum.pub", "-o", "ROOT/x"), (3, "crypto.cbor.malformed")),
        (("anchors", "ROOT/none", "ROOT/quantum.pub", "-o", "ROOT/x"), (4, "base.storage.missing")),
        (("anchors", "/dev/zero", "ROOT/quantum.pub", "-o", "ROOT/x"), (3, "base.input.too-large")),
    ],
)
def test_keys_refused(shell, words, expected):
    words = [word.replace("ROOT", str(shell.root)) for word in words]
    words = [shell.uri(word[4:]) if word.startswith("URI:") else word for word in words]
    assert shell.refused("keys", *words) == expected
    assert not (shell.root / "x").exists()


def test_a_secret_open_to_others(shell):
    shell.secret.chmod(0o644)
    assert shell.refused("keys", "list", shell.uri()) == (3, "base.permissions.unsafe")


def test_destroying_asks_for_yes(shell):
    status, _, err = shell.run("keys", "destroy", shell.uri("classical"))
    assert status == 2
    assert "--yes" in err
    assert "classical" in shell.must("keys", "list", shell.uri())


def test_nothing_secret_is_shown(shell):
    words = shell.root / "words"
    words.write_bytes(b"wrong horse")
    words.chmod(0o600)
    status, out, err = shell.run("keys", "list", f"file:{shell.root}/store?passphrase-file={words}")
    assert status == 3
    assert "horse" not in out + err


# ---- image --------------------------------------------------------------------------------------------------------


def build(shell, *more):
    return ("image", "build", shell.root / "image.toml", *shell.sign(), "-o", shell.root / "bundle", *more)


def verify(shell, *more, hardware="board-r1"):
    return (
        "image",
        "verify",
        shell.root / "bundle",
        "--anchors",
        shell.root / "anchors",
        "--hardware",
        hardware,
        *more,
    )


def test_image(shell):
    shell.must(*build(shell))
    assert "NOT VERIFIED" in shell.must("image", "inspect", shell.root / "bundle")
    document = json.loads(shell.must(*verify(shell), "--json"))
    assert document["verified"]
    assert len(document["signers"]) == 2
    assert re.fullmatch("[0-9a-f]{64}", document["manifest"]["sbom_sha256"])
    inspected = json.loads(shell.must("image", "inspect", shell.root / "bundle", "--json"))
    assert inspected["verified"] is False
    assert inspected["manifest"] == document["manifest"]


def test_image_refused(shell):
    shell.must(*build(shell))
    assert shell.refused(*verify(shell, hardware="board-r2")) == (3, "image.hardware.mismatch")
    assert shell.refused(*verify(shell, "--floor", "3")) == (3, "image.version.security-downgrade")
    bundle = shell.root / "bundle"
    whole = bundle.read_bytes()
    for content, code in (
        (whole + b"\0", "image.layout.size"),
        (whole[:-1], "image.layout.size"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "image.payload.corrupt"),
        (whole[:100], "base.input.truncated"),
        (b"", "base.input.truncated"),
        (bytes(len(whole)), "image.layout.malformed"),
        (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], "crypto.signature.invalid"),
    ):
        bundle.write_bytes(content)
        assert shell.refused(*verify(shell)) == (3, code)
    bundle.unlink()
    assert shell.refused(*verify(shell)) == (4, "base.storage.missing")


@pytest.mark.parametrize(
    "change",
    [
        ("version = ", "verson = "),
        ('"1.0.0"', '"1.0"'),
        ('"rootfs"\nfile', '"application"\nfile'),
        ("[[payload]]", "[[payload]"),
        ("security_version = 2", "security_version = " + "9" * 5000),
        ('"Maker"', '"Maker\\u001b[2J"'),
    ],
)
def test_image_descriptions_refused(shell, change):
    path = shell.root / "image.toml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    assert shell.refused(*build(shell)) == (2, "image.build.description")
    assert not (shell.root / "bundle").exists()
    assert not list(shell.root.glob(".*"))


def test_image_description_that_is_no_text(shell):
    path = shell.root / "image.toml"
    path.write_bytes(path.read_bytes().replace(b"Maker", b"Mak\xff"))
    assert shell.refused(*build(shell)) == (2, "image.build.description")


def test_image_with_a_missing_payload(shell):
    (shell.root / "rootfs").unlink()
    assert shell.refused(*build(shell)) == (4, "base.storage.missing")
    assert not list(shell.root.glob(".*"))


def test_a_failed_build_leaves_the_bundle_before_it(shell):
    shell.must(*build(shell))
    before = (shell.root / "bundle").read_bytes()
    (shell.root / "rootfs").write_bytes(b"")
    assert shell.refused(*build(shell)) == (2, "image.build.description")
    assert (shell.root / "bundle").read_bytes() == before


def test_signing_twice_with_one_key(shell):
    words = [*build(shell)[:3], "--sign", shell.uri("classical"), "--sign", shell.uri("classical"), *build(shell)[-2:]]
    assert shell.refused(*words) == (2, "crypto.envelope.signers")
    assert not (shell.root / "bundle").exists()


# ---- policy -------------------------------------------------------------------------------------------------------


def test_policy(shell):
    root = shell.root
    assert "policy version 3" in shell.must("policy", "check", root / "policy.toml")
    shell.must("policy", "sign", root / "policy.toml", *shell.sign(), "-o", root / "policy.cose")
    verify = ("policy", "verify", root / "policy.cose", "--anchors", root / "anchors", "--device")
    assert json.loads(shell.must(*verify, "gw-1", "--json"))["version"] == 3
    assert shell.refused(*verify, "x") == (3, "policy.device.mismatch")
    assert shell.refused(*verify, "gw-1", "--min-version", "4") == (3, "policy.version.rollback")
    raw = (root / "policy.cose").read_bytes()
    (root / "policy.cose").write_bytes(raw + b"\0" * 70_000)
    assert shell.refused(*verify, "gw-1") == (3, "base.input.too-large")
    shell.must(*build(shell))
    (root / "policy.cose").write_bytes((root / "bundle").read_bytes()[:60_000])
    assert shell.refused(*verify, "gw-1")[0] == 3


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"[policy]\nversion = 3\nverson = 1\n", "policy.key.unknown"),
        (b"[policy]\nversion = 'x'\n", "policy.value.invalid"),
        (b"[policy\n", "policy.syntax"),
        (b"[policy]\nversion = 3\ndescription = '\xff'\n", "policy.syntax"),
        (b"#" * 262_145, "base.input.too-large"),
    ],
)
@pytest.mark.parametrize("verb", ["check", "sign"])
def test_policies_refused(shell, content, code, verb):
    path = shell.root / "policy.toml"
    path.write_bytes(content)
    more = (*shell.sign(), "-o", shell.root / "signed") if verb == "sign" else ()
    assert shell.refused("policy", verb, path, *more) == (3, code)
    assert not (shell.root / "signed").exists()


def test_an_unknown_key_is_named_with_line_and_nearest_key(shell):
    (shell.root / "policy.toml").write_text("[policy]\nversion = 3\n[firewall]\nmodus = 'x'\n")
    _, _, err = shell.run("policy", "check", shell.root / "policy.toml")
    assert "line 4" in err
    assert "'firewall.modus'" in err
    assert "'mode'" in err


# ---- the entry point ----------------------------------------------------------------------------------------------


def test_every_noun_has_a_page_of_help(shell):
    for noun in NOUNS:
        status, out, _ = shell.run(noun, "--help")
        assert status == 0
        assert f"tidegate {noun}" in out


def test_every_verb_has_a_purpose_and_takes_json():
    for noun in NOUNS:
        parser = build_parser(noun)
        nouns = next(action for action in parser._actions if action.dest == "noun")
        for name, verb in verbs_of(nouns.choices[noun], noun):
            assert verb.description, name
            assert "--json" in verb.format_help(), name
            assert verb.get_default("run"), name


def verbs_of(parser, name):
    """Yield each verb; a verb with verbs below it (keys ceremony) is these."""
    for action in parser._actions:
        if action.dest.endswith("verb"):
            for word, verb in action.choices.items():
                below = list(verbs_of(verb, f"{name} {word}"))
                yield from below or [(f"{name} {word}", verb)]


@pytest.mark.parametrize(
    "words", [(), ("nonsense",), ("keys",), ("keys", "nonsense"), ("--nonsense",), ("image", "verify")]
)
def test_misuse_of_the_command_line(shell, words):
    status, out, err = shell.run(*words)
    assert (status, out) == (2, "")
    assert "usage: tidegate" in err


def test_version(shell):
    assert re.match(r"tidegate \d+\.\d+\.\d+", shell.must("--version"))


def test_an_interrupt_has_its_exit_code(shell, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("tidegate.cli.error.explain", interrupt)
    assert shell.run("error")[0] == 130


def test_every_code_is_explained(shell):
    codes = load_all_codes()
    listed = json.loads(shell.must("error", "--json"))["codes"]
    ours = {code for code, kind in codes.items() if kind.__module__.startswith("tidegate.")}
    assert ours <= set(listed)
    for code in sorted(ours):
        document = json.loads(shell.must("error", code, "--json"))
        assert document["exit_code"] == registered_codes()[code].exit_status
        assert document["advice"]


def test_an_unknown_code_names_its_neighbours(shell):
    status, out, _ = shell.run("error", "crypto.signature.unknown_key")
    assert status == 1
    assert "crypto.signature.unknown-key" in out
