"""Channel binding: what it is worth, and that nobody follows a pointer that is not proven."""

import ssl

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.errors import TidegateError
from tidegate.testing.ca import Lab
from tidegate.tls import exporter
from tidegate.tls.context import client_context, server_context
from tidegate.tls.exporter import BINDING_BYTES, channel_binding
from tidegate.tls.selfcheck import shake_hands


@pytest.fixture
def pair(tmp_path):
    """Return a function that shakes hands with a given version and returns both ends."""
    tmp_path.chmod(0o700)
    lab = Lab(tmp_path)
    server = server_context(
        lab.keys.signer("server"), [one.public_bytes(Encoding.DER) for one in (lab.server, lab.issuing)], clients=None
    )

    def connect(version):
        client = client_context(anchors=[lab.root.public_bytes(Encoding.DER)])
        client.minimum_version = client.maximum_version = version
        return shake_hands(server, client, "localhost")

    return connect


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_ends_agree_and_no_two_connections_do(pair, version):
    bindings = [tuple(channel_binding(end) for end in pair(version)) for _ in range(2)]
    assert all(one == other for one, other in bindings)
    assert bindings[0] != bindings[1]
    assert len(bindings[0][0]) == (BINDING_BYTES if version is ssl.TLSVersion.TLSv1_3 else 12)


@pytest.mark.parametrize("offset", [8, 16, 32, 40, 64])
def test_wrong_layout_gives_no_binding(pair, monkeypatch, offset):
    monkeypatch.setattr(exporter, "_OFFSET", offset)
    exporter._prove.cache_clear()
    try:
        end, _ = pair(ssl.TLSVersion.TLSv1_3)
        assert channel_binding(end) is None
        with pytest.raises(TidegateError) as caught:
            exporter._export(end)
        assert caught.value.code == "tls.unsupported.exporter"
    finally:
        exporter._prove.cache_clear()


def test_connection_without_tls_has_none():
    class Bare:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

        @staticmethod
        def version():
            return "TLSv1.3"

    assert channel_binding(Bare()) is None
