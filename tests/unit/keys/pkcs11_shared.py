"""What the tests of the PKCS#11 provider share."""

import subprocess

import pytest

from tidegate.base.errors import TidegateError
from tidegate.base.program import find_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.testing.tokens import MODULE

P256, P384 = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384
EXPORTABLE = KeyPolicy(exportable=True)


def signing(algorithm=P256, **policy):
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm, policy=KeyPolicy(**policy))


def sealing(**policy):
    return KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(**policy))


def code_of(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    return caught.value.code


def tool(hsm, *arguments, label="one", pin=None):
    """Run pkcs11-tool as another process that knows the token."""
    environment = {**hsm.environment, "TOOL_PIN": pin or "", "NEW_PIN": "999999"}
    login = ["--login", "--pin", "env:TOOL_PIN"] if pin else []
    return subprocess.run(
        [find_program("pkcs11-tool"), "--module", str(MODULE), "--token-label", label, *login, *arguments],
        env=environment,
        check=True,
        capture_output=True,
    ).stdout
