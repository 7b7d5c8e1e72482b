"""What the role's module shares: etcd's API over mutual TLS, and what a data directory says of itself without it."""

from __future__ import annotations

import glob
import http.client
import json
import os
import ssl
import struct


class Unreachable(Exception):
    """Why a member gave no answer, in words."""


class Api:
    """One member's API."""

    def __init__(self, host, port, ca, certificate, key):
        self.host, self.port = host, port
        self.context = ssl.create_default_context(cafile=ca)
        self.context.load_cert_chain(certificate, key)

    def ask(self, path, body=None, timeout=3):
        """The answer to a POST (with a body) or a GET, as a dict; raises Unreachable."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.context)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode("utf-8", "replace")
            found = json.loads(text)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable("%s" % error)
        except ValueError:
            raise Unreachable("no answer of etcd: %s" % text[:200])
        finally:
            connection.close()
        if answer.status != 200 and "health" not in found:
            raise Unreachable(found.get("message") or found.get("error") or "status %d" % answer.status)
        return found

    def healthy(self):
        """Whether a quorum answers through this member."""
        try:
            return str(self.ask("/health").get("health")) == "true"
        except Unreachable:
            return False


def identity(number):
    """An ID as etcdctl prints it."""
    return "%x" % int(number)


def varint(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def fields(data):
    """{number: value} of a protocol buffer that has no repeated fields."""
    at, found = 0, {}
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            found[key >> 3], at = varint(data, at)
        elif key & 7 == 2:
            size, at = varint(data, at)
            found[key >> 3], at = data[at : at + size], at + size
        elif key & 7 == 1:
            found[key >> 3], at = struct.unpack("<Q", data[at : at + 8])[0], at + 8
        else:
            raise ValueError("no field of etcd's")
    return found


def wal_identity(folder):
    """(member ID, cluster ID) that a member's log begins with; empty where there is none (etcd's server/wal: a frame's
    length in 56 bits, a record of type, checksum and data; the second record is the metadata)."""
    files = sorted(glob.glob(os.path.join(glob.escape(folder), "member/wal/*.wal")))
    if not files:
        return "", ""
    with open(files[0], "rb") as handle:
        data, at = handle.read(4096), 0
    try:
        for _ in range(2):
            frame = struct.unpack("<Q", data[at : at + 8])[0]
            size, padding = frame & ((1 << 56) - 1), (frame >> 56) & 7
            record = fields(data[at + 8 : at + 8 + size])
            if record.get(1) == 1:
                found = fields(record[3])
                return identity(found[1]), identity(found[2])
            at += 8 + size + padding
    except (IndexError, KeyError, ValueError, struct.error):
        pass
    return "", ""
