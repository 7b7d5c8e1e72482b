"""Asking another PostgreSQL server over TLS without its client: a host that is not yet one has no psql, and a password
that only this process knows stands in no argument list, file or environment."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import socket
import ssl
import struct

from ansible.module_utils.postgres_scram import prepared

TLS_REQUEST = struct.pack("!ii", 8, 80877103)
PROTOCOL_3 = 196608


class Unreachable(Exception):
    """Why the other server could not be asked, in words."""


class ServerError(Unreachable):
    """What the other server answered instead of a result."""


def startup(**words):
    body = struct.pack("!i", PROTOCOL_3)
    body += b"".join(key.encode() + b"\0" + str(value).encode() + b"\0" for key, value in words.items()) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def message(kind, body):
    return kind + struct.pack("!i", len(body) + 4) + body


def error_words(body):
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    return fields.get(b"M", "an error without words")


def row(body):
    """One data row as texts; None stands for null."""
    (count,), position, values = struct.unpack("!h", body[:2]), 2, []
    for _ in range(count):
        (length,) = struct.unpack("!i", body[position : position + 4])
        position += 4
        if length < 0:
            values.append(None)
            continue
        values.append(body[position : position + length].decode("utf-8", "replace"))
        position += length
    return values


class Scram:
    """The client's side of SCRAM-SHA-256 (RFC 5802, 7677); the server has to prove that it knows the password too."""

    def __init__(self, password, nonce=""):
        self.password = prepared(password)
        self.bare = "n=,r=" + (nonce or base64.b64encode(os.urandom(18)).decode())
        self.signature = b""

    def first(self):
        return ("n,," + self.bare).encode()

    def final(self, challenge):
        text = challenge.decode()
        fields = dict(part.split("=", 1) for part in text.split(","))
        if not fields["r"].startswith(self.bare.split("r=", 1)[1]):
            raise Unreachable("the server answered another nonce")
        salted = hashlib.pbkdf2_hmac("sha256", self.password, base64.b64decode(fields["s"]), int(fields["i"]))
        client = hmac.digest(salted, b"Client Key", "sha256")
        closing = "c=biws,r=" + fields["r"]
        signed = ",".join((self.bare, text, closing)).encode()
        proof = hmac.digest(hashlib.sha256(client).digest(), signed, "sha256")
        self.signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), signed, "sha256")
        mixed = bytes(a ^ b for a, b in zip(client, proof, strict=True))
        return (closing + ",p=" + base64.b64encode(mixed).decode()).encode()

    def prove(self, closing):
        fields = dict(part.split("=", 1) for part in closing.decode().split(","))
        if not hmac.compare_digest(base64.b64decode(fields.get("v", "")), self.signature):
            raise Unreachable("the server does not know the password")


class Connection:
    """One session with SCRAM over verified TLS.

    `verify_name` off still verifies who signed the certificate; SCRAM then proves that the server knows the password.
    Raises Unreachable.
    """

    def __init__(self, host, port, user, password, ca, database="postgres", verify_name=True, timeout=10):
        self.where = "%s:%s" % (host, port)
        try:
            context = ssl.create_default_context(cafile=ca)
            context.check_hostname = verify_name
            raw = socket.create_connection((host, port), timeout=timeout)
        except (OSError, ssl.SSLError) as error:
            raise Unreachable("%s: %s" % (self.where, error)) from error
        try:
            raw.sendall(TLS_REQUEST)
            if raw.recv(1) != b"S":
                raise Unreachable("%s: it offers no TLS" % self.where)
            self.socket = context.wrap_socket(raw, server_hostname=host)
            self.buffer = b""
            self.socket.sendall(startup(user=user, database=database, application_name="stepladder"))
            self.log_in(Scram(password))
        except (OSError, ValueError, KeyError, struct.error) as error:
            raw.close()
            raise Unreachable("%s: %s" % (self.where, error)) from error
        except Unreachable:
            raw.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def take(self, count):
        while len(self.buffer) < count:
            more = self.socket.recv(65536)
            if not more:
                raise Unreachable("%s: it closed the connection" % self.where)
            self.buffer += more
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def next(self):
        kind, length = self.take(1), struct.unpack("!i", self.take(4))[0]
        body = self.take(length - 4)
        if kind == b"E":
            raise ServerError("%s: %s" % (self.where, error_words(body)))
        return kind, body

    def log_in(self, scram):
        while True:
            kind, body = self.next()
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            (step,) = struct.unpack("!i", body[:4])
            if step == 10:
                first = scram.first()
                self.send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first)
            elif step == 11:
                self.send(b"p", scram.final(body[4:]))
            elif step == 12:
                scram.prove(body[4:])
            elif step != 0 or not scram.signature:
                raise Unreachable("%s: it does not ask for SCRAM" % self.where)

    def send(self, kind, body):
        self.socket.sendall(message(kind, body))

    def ask(self, sql):
        """The rows of one statement, as lists of texts."""
        try:
            self.send(b"Q", sql.encode() + b"\0")
            rows = []
            while True:
                kind, body = self.next()
                if kind == b"D":
                    rows.append(row(body))
                elif kind == b"Z":
                    return rows
        except OSError as error:
            raise Unreachable("%s: %s" % (self.where, error)) from error
