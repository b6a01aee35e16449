"""``tidegate tls check``."""

import json

from tidegate.cli.main import main
from tidegate.tls import selfcheck
from tidegate.tls.errors import LayoutUnsupported


def test_it_says_what_was_proven(capsys) -> None:
    assert main(["tls", "check"]) == 0
    assert "works here" in capsys.readouterr().out
    assert main(["tls", "check", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert said["versions"] == ["TLSv1.2", "TLSv1.3"]
    assert set(said["algorithms"]) == {"ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss"}


def test_an_unsupported_platform_is_an_error_with_its_code(monkeypatch, capsys) -> None:
    def refuse():
        raise LayoutUnsupported("no", offset=16)

    monkeypatch.setattr(selfcheck, "examine_platform", refuse)
    assert main(["tls", "check", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "tls.unsupported.layout"
