"""The maker's side refuses what no device would accept, before it writes a byte."""

import io

import pytest

from tidegate.image.build import PayloadSource, write_bundle
from tidegate.image.layout import total_bytes
from tidegate.image.manifest import PayloadKind


def build(maker, sources=None, signers=None, **identity):
    out = io.BytesIO()
    try:
        return write_bundle(
            maker.identity(**identity), maker.sources() if sources is None else sources, signers or maker.signers, out
        )
    finally:
        build.written = out.getvalue()


def source(name="app", kind=PayloadKind.APPLICATION, data=b"x", start=()):
    return PayloadSource(name=name, kind=kind, stream=io.BytesIO(data), start=start)


@pytest.mark.parametrize(
    "identity",
    [
        {"vendor": ""},
        {"product": "x" * 129},
        {"hardware": ()},
        {"hardware": ("Board",)},
        {"version": "1.0"},
        {"version": "1.0.0-rc1"},
        {"security_version": -1},
        {"security_version": 2**32},
        {"sbom_sha256": b"short"},
    ],
)
def test_identities(maker, code_of, identity):
    assert code_of(build, maker, **identity) == "image.build.description"
    assert build.written == b""


@pytest.mark.parametrize(
    "change",
    [
        lambda sources: sources[:1],
        lambda sources: sources[1:],
        lambda sources: [],
        lambda sources: [*sources, source(name="rootfs")],
        lambda sources: [*sources, source(kind=PayloadKind.ROOTFS)],
        lambda sources: [*sources, source(name="../app")],
        lambda sources: [*sources, source(name="app\n")],
        lambda sources: [*sources, source(data=b"")],
        lambda sources: [*sources, *(source(name=f"a{number}") for number in range(31))],
        lambda sources: [*sources, source(start=("x",) * 33)],
        lambda sources: [
            *sources,
            *(source(name=f"a{number}", start=("x" * 1000,) * 32) for number in range(2)),
        ],  # a manifest over 32 KiB
    ],
)
def test_payloads(maker, code_of, change):
    assert code_of(build, maker, change(maker.sources())) == "image.build.description"
    assert build.written == b""


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 128 * 4096, 128 * 4096 + 1])
def test_sizes_around_the_borders(maker, in_memory, size):
    from tidegate.image.verify import verify_image

    bundle, manifest = maker.bundle(maker.sources(rootfs=b"\xa5" * size))
    assert len(bundle) == total_bytes(manifest)
    verify_image(in_memory(bundle), maker.rule(), exact_size=True)


def test_streams_that_were_read_before(maker, in_memory):
    from tidegate.image.verify import verify_image

    sources = maker.sources()
    for entry in sources:
        entry.stream.read()
    verify_image(in_memory(maker.bundle(sources)[0]), maker.rule(), exact_size=True)


def test_a_file_that_changes_while_it_is_packed(maker, in_memory, code_of):
    """Nothing signs what was not hashed: the bundle is refused by every device."""
    from tidegate.image.verify import verify_image

    class Changing(io.BytesIO):
        rewinds = 0

        def seek(self, *args):
            self.rewinds += 1
            if self.rewinds == 3:
                self.getbuffer()[0] ^= 1
            return super().seek(*args)

    sources = maker.sources()
    stream = Changing(b"content" * 1000)
    sources[1] = PayloadSource(name="rootfs", kind=PayloadKind.ROOTFS, stream=stream)
    bundle, _ = maker.bundle(sources)
    assert code_of(verify_image, in_memory(bundle), maker.rule()).startswith("image.payload.")
