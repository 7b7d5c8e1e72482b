"""Answer on every port that the tests knock at, over IPv4 and IPv6: what does not answer was stopped on its way."""

import selectors
import socket

TCP = (2222, 8001, 8002, 8003, 8004, 8009, 8010, 8011, 8012, 8013)
UDP = (8001, 8004, 8005)

chosen = selectors.DefaultSelector()
for port in TCP:
    chosen.register(
        socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True), selectors.EVENT_READ
    )
for port in UDP:
    talk = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    talk.bind(("::", port))
    chosen.register(talk, selectors.EVENT_READ)
while True:
    for key, _ in chosen.select():
        if key.fileobj.type == socket.SOCK_DGRAM:
            _, peer = key.fileobj.recvfrom(64)
            key.fileobj.sendto(b"here", peer)
        else:
            connection, _ = key.fileobj.accept()
            with connection:
                connection.sendall(b"here")
