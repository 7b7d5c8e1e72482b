#!/usr/bin/python3
"""Open-loop load through the edge: `load.py SECONDS RATE [PATH]` starts RATE requests a second, whatever the answers do.

A third of the requests goes over connections of their own, a third over kept HTTP/1.1 connections, a third over kept
HTTP/2 connections. As a browser does, it looks before it sends whether the server has ended a kept connection.
Ends two seconds after /run/load.stop appears. Prints one JSON document.
"""

import http.client
import json
import os
import queue
import select
import socket
import ssl
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events

GOAWAY = 7
NAME, ADDRESS, SECONDS = "shop.example.com", "127.0.0.1", 20


def connect(protocols):
    context = ssl.create_default_context(cafile="/etc/stepladder/tls/ca.pem")
    context.set_alpn_protocols(protocols)
    return context.wrap_socket(socket.create_connection((ADDRESS, 443), SECONDS), server_hostname=NAME)


class One(http.client.HTTPSConnection):
    """HTTP/1.1."""

    def connect(self):
        self.sock = connect(["http/1.1"])

    def is_ended(self):
        return self.sock is None or bool(select.select([self.sock], [], [], 0)[0])

    def get(self, path, last):
        self.request("GET", path, headers={"Connection": "close"} if last else {})
        answer = self.getresponse()
        return answer.status, answer.read()


class GoneAway(OSError):
    """The server took no more requests over this connection, and says that it did not look at ours."""


class Two:
    """HTTP/2, one request at a time."""

    def __init__(self):
        self.sock = connect(["h2"])
        assert self.sock.selected_alpn_protocol() == "h2"
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.state.initiate_connection()
        self.sock.sendall(self.state.data_to_send())
        self.buffer, self.last = b"", None  # the last stream that the server takes, once it says so

    def read(self):
        """The next events; the connection's own housekeeping is done."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("the connection ended")
        self.buffer += data
        events = []
        while len(self.buffer) >= 9:
            length, kind = int.from_bytes(self.buffer[:3], "big"), self.buffer[3]
            if len(self.buffer) < 9 + length:
                break
            frame, self.buffer = self.buffer[: 9 + length], self.buffer[9 + length :]
            if kind == GOAWAY:
                # Not for h2: it would take nothing more, and the streams up to this one are still answered.
                self.last = int.from_bytes(frame[9:13], "big") & 0x7FFFFFFF
            else:
                events += self.state.receive_data(frame)
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.sock.sendall(self.state.data_to_send())
        return events

    def is_ended(self):
        try:
            while self.last is None and (self.sock.pending() or select.select([self.sock], [], [], 0)[0]):
                self.read()
        except OSError:
            return True
        return self.last is not None

    def close(self):
        self.sock.close()

    def get(self, path, last):
        stream = self.state.get_next_available_stream_id()
        names = [(":method", "GET"), (":authority", NAME), (":scheme", "https"), (":path", path)]
        self.state.send_headers(stream, names, end_stream=True)
        self.sock.sendall(self.state.data_to_send())
        status, body = 0, b""
        while True:
            events = self.read()
            if self.last is not None and self.last < stream:
                raise GoneAway("not looked at")
            for event in events:
                if getattr(event, "stream_id", 0) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.StreamReset):
                    raise ConnectionResetError(f"stream reset, {event.error_code}")
                elif isinstance(event, h2.events.StreamEnded):
                    return status, body


AGAIN = []
KEPT = {One: queue.LifoQueue(), Two: queue.LifoQueue()}


def kept(kind):
    while True:
        try:
            connection = KEPT[kind].get_nowait()
        except queue.Empty:
            return One(NAME, timeout=SECONDS) if kind is One else Two()
        if not connection.is_ended():
            return connection
        connection.close()


def request(number, path, answers):
    start = time.monotonic()
    kind = Two if number % 3 == 2 else One
    try:
        connection = kept(kind) if number % 3 else One(NAME, timeout=SECONDS)
        try:
            status, body = connection.get(path, last=number % 3 == 0)
        except GoneAway:
            connection = Two()
            status, body = connection.get(path, last=False)
        except http.client.RemoteDisconnected:
            # The server ended the connection while the request was on its way: a client may send a GET again, and says so.
            if number % 3 == 0:
                raise
            AGAIN.append(number)
            connection = One(NAME, timeout=SECONDS)
            status, body = connection.get(path, last=False)
        what = json.loads(body)["server"] if status == 200 else f"status {status}"
        if number % 3:
            KEPT[kind].put(connection)
    except (OSError, http.client.HTTPException) as error:
        what = f"failed {kind.__name__} {error!r}"
    answers.append((what, time.monotonic() - start))


def main():
    seconds, rate = float(sys.argv[1]), float(sys.argv[2])
    path = sys.argv[3] if len(sys.argv) > 3 else "/"
    answers, threads = [], []
    begin = time.monotonic()
    count, end = 0, begin + seconds
    while time.monotonic() < end:
        if os.path.exists("/run/load.stop"):
            end = min(end, time.monotonic() + 2)
            os.unlink("/run/load.stop")
        thread = threading.Thread(target=request, args=(count, path, answers))
        thread.start()
        threads.append(thread)
        count += 1
        time.sleep(max(0.0, begin + count / rate - time.monotonic()))
    for thread in threads:
        thread.join()
    kinds = {what: sum(1 for w, _ in answers if w == what) for what in {w for w, _ in answers}}
    times = sorted(seconds for _, seconds in answers)
    found = {"requests": count, "kinds": kinds, "again": len(AGAIN)}
    print(json.dumps({**found, "p50": times[len(times) // 2], "longest": times[-1]}))


main()
