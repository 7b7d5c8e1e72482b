"""knock.py ADDRESS SOURCE KNOCK...: prints the knocks that are answered.

A knock is tcp:PORT, udp:PORT or ping; SOURCE is the address to come from, or "any".
"""

import ipaddress
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 1.5  # a dropped packet gets no answer at all; one that arrives is answered at once


def talk_to(knock: str, six: bool) -> tuple[socket.socket, int, bytes]:
    """The socket for a knock, the port, and what to say first."""
    family = socket.AF_INET6 if six else socket.AF_INET
    if knock == "ping":
        protocol, echo = (socket.IPPROTO_ICMPV6, 128) if six else (socket.IPPROTO_ICMP, 8)
        return socket.socket(family, socket.SOCK_DGRAM, protocol), 0, bytes([echo, 0, 0, 0, 0, 0, 0, 1])
    kind, _, port = knock.partition(":")
    if kind == "udp":
        return socket.socket(family, socket.SOCK_DGRAM), int(port), b"who is there"
    return socket.socket(family, socket.SOCK_STREAM), int(port), b""


def answers(knock: str) -> bool:
    talk, port, first = talk_to(knock, ipaddress.ip_address(ADDRESS).version == 6)
    with talk:
        talk.settimeout(SECONDS)
        if SOURCE != "any":
            talk.bind((SOURCE, 0))
        try:
            talk.connect((ADDRESS, port))
            if first:
                talk.send(first)
            return bool(talk.recv(64))
        except OSError:
            return False


ADDRESS, SOURCE, *KNOCKS = sys.argv[1:]
with ThreadPoolExecutor(len(KNOCKS)) as pool:
    print(*[knock for knock, answered in zip(KNOCKS, pool.map(answers, KNOCKS), strict=True) if answered])
