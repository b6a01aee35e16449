"""The ``[update]`` section of the policy: how a new version proves that it is healthy."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct


class HttpProbe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A local HTTP answer that a healthy system gives; ``{version}`` in ``expect`` stands for the running version."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    path: Annotated[str, Meta(pattern=r"^/[!-~]{0,255}\Z")] = "/"
    expect: Annotated[str, Meta(max_length=256)] = ""


class UpdateSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All probes have to pass within the deadline, or the trial has failed. No probe: started is healthy enough."""

    tries: Annotated[int, Meta(ge=1, le=7)] = 3
    deadline_s: Annotated[int, Meta(ge=1, le=3600)] = 60
    http: Annotated[tuple[HttpProbe, ...], Meta(max_length=16)] = ()
