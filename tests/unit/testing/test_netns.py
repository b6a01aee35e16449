from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tidegate.base.errors import NotRoot, TidegateError
from tidegate.testing import netns
from tidegate.testing.netns import Namespace, join, make_unique

needs_ip = pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def test_unique_names_differ() -> None:
    assert make_unique("t") != make_unique("t")
    assert str(os.getpid()) in make_unique("t")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-n", "x" * 65, "a b", "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(TidegateError) as caught:
        Namespace.create(name)
    assert caught.value.code == "testing.netns.name"


def test_without_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns.os, "geteuid", lambda: 1000)
    with pytest.raises(NotRoot):
        Namespace.create(make_unique("t"))


@pytest.mark.root
@needs_ip
@needs_root
class TestReal:
    def test_busy_name_is_refused_and_left_alone(self) -> None:
        name = make_unique("tg-busy")
        with Namespace.create(name) as first:
            with pytest.raises(TidegateError) as caught:
                Namespace.create(name)
            assert caught.value.code == "testing.netns.busy"
            assert first.run(["cat", "/proc/self/comm"]).stdout == b"cat\n"
        assert not Path("/run/netns", name).exists()

    def test_delete_kills_what_runs_inside(self) -> None:
        space = Namespace.create(make_unique("tg-kill"))
        process = space.popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        while process.pid not in space.pids() and time.monotonic() < deadline:
            time.sleep(0.01)
        space.delete()
        space.delete()
        assert process.wait(5) == -9
        with pytest.raises(TidegateError) as caught:
            space.run(["true"])
        assert caught.value.code == "testing.netns.gone"

    def test_inside_moves_this_thread_and_brings_it_back(self) -> None:
        before = Path("/proc/thread-self/ns/net").readlink()
        with Namespace.create(make_unique("tg-in")) as space:
            with pytest.raises(ZeroDivisionError), space.inside():
                assert Path("/proc/thread-self/ns/net").readlink() != before
                assert subprocess.run(
                    ["/usr/bin/readlink", "/proc/self/ns/net"], capture_output=True, check=True
                ).stdout != (f"{before}\n".encode())
                _ = 1 // 0
            assert Path("/proc/thread-self/ns/net").readlink() == before

    def test_cleaned_up_when_the_test_fails(self) -> None:
        name = make_unique("tg-fail")
        with pytest.raises(ZeroDivisionError), Namespace.create(name):
            _ = 1 // 0
        assert not Path("/run/netns", name).exists()

    def test_joined_namespaces_reach_each_other_by_both_families(self) -> None:
        with Namespace.create(make_unique("tg-a")) as a, Namespace.create(make_unique("tg-b")) as b:
            join(
                a,
                b,
                interfaces=("dev0", "att0"),
                addresses_a=["192.0.2.1/24", "2001:db8::1/64"],
                addresses_b=["192.0.2.2/24", "2001:db8::2/64"],
            )
            server = "import socket;s=socket.create_server(('::',9),family=10,dualstack_ipv6=True);print(flush=True)\n"
            process = a.popen(["python3", "-c", server + "while 1:s.accept()[0].send(b'x')"])
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            for address in ("192.0.2.1", "2001:db8::1"):
                client = f"import socket;print(socket.create_connection(('{address}',9),3).recv(1))"
                assert b.run(["python3", "-c", client]).stdout == b"b'x'\n"
            a.delete()
            process.wait(5)
            process.stdout.close()
            process.stderr.close()
            with pytest.raises(TidegateError) as caught:
                join(b, b, interfaces=("same0", "same0"))
            assert caught.value.code == "testing.netns.failed"
