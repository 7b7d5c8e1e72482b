"""What etcd has of a cluster of Patroni's, asked of whichever of its members answers, over mutual TLS."""

from __future__ import annotations

import base64
import http.client
import json
import ssl


class Unreachable(Exception):
    """Why etcd gave no answer, in words."""


def packed(text):
    return base64.b64encode(text.encode()).decode()


def unpacked(text):
    return base64.b64decode(text).decode("utf-8", "replace")


class Etcd:
    """The keys below one prefix."""

    def __init__(self, hosts, ca, certificate, key, scope):
        self.hosts, self.prefix = list(hosts), "/service/%s/" % scope
        self.context = ssl.create_default_context(cafile=ca)
        self.context.load_cert_chain(certificate, key)

    def call(self, path, body):
        """The first answer of any member; raises Unreachable with what the last one said."""
        words = "patroni_etcd_hosts is empty"
        for place in self.hosts:
            host, _, port = place.rpartition(":")
            connection = http.client.HTTPSConnection(host, int(port), timeout=4, context=self.context)
            try:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                found = json.loads(answer.read().decode("utf-8", "replace"))
                if answer.status == 200:
                    return found
                words = "%s: %s" % (place, found.get("message") or found.get("error") or answer.status)
            except (OSError, ValueError, http.client.HTTPException) as error:
                words = "%s: %s" % (place, error)
            finally:
                connection.close()
        raise Unreachable(words)

    def keys(self):
        """{name: value} of all that Patroni keeps."""
        end = self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)
        found = self.call("/v3/kv/range", {"key": packed(self.prefix), "range_end": packed(end)})
        return {
            unpacked(item["key"])[len(self.prefix) :]: unpacked(item.get("value", "")) for item in found.get("kvs", [])
        }

    def put_new(self, name, value):
        """Write a key that is not there; whether it was not."""
        key = packed(self.prefix + name)
        found = self.call("/v3/kv/txn", {
            "compare": [{"key": key, "target": "CREATE", "createRevision": "0"}],
            "success": [{"requestPut": {"key": key, "value": packed(value)}}],
        })  # fmt: skip
        return bool(found.get("succeeded"))

    def delete(self, name):
        self.call("/v3/kv/deleterange", {"key": packed(self.prefix + name)})

    def delete_all(self):
        end = self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)
        self.call("/v3/kv/deleterange", {"key": packed(self.prefix), "range_end": packed(end)})


def document(text):
    """A key's JSON; an empty dict where there is none."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def host_of(url):
    """The host of Patroni's connection string (postgres://host:port/database)."""
    return url.split("://", 1)[-1].split("/", 1)[0].rpartition(":")[0].strip("[]")


def member(name, data, leader, synchronous, optime):
    """One member as the status has it."""
    role = "leader" if name == leader else "synchronous" if name in synchronous else "replica"
    state = data.get("state", "")
    if role != "leader":
        # Patroni 3.0 does not say whether a running replica streams.
        state = data.get("replication_state") or (
            "streaming" if state == "running" and data.get("version", "").startswith("3.0") else state
        )
    at = data.get("xlog_location") or data.get("receive_lsn")
    return {
        "name": name, "role": role, "state": state, "host": host_of(data.get("conn_url", "")),
        "timeline": data.get("timeline", 0), "pending_restart": bool(data.get("pending_restart")), "paused": bool(data.get("pause")),
        "lag_bytes": 0 if role == "leader" else max(optime - at, 0) if isinstance(at, int) else None,
        "version": data.get("version", ""),
    }  # fmt: skip


def cluster(keys):
    """The cluster as Patroni's keys have it."""
    config, sync, leader = document(keys.get("config")), document(keys.get("sync")), keys.get("leader", "")
    synchronous = (
        [name for name in (sync.get("sync_standby") or "").split(",") if name] if sync.get("leader") == leader else []
    )
    optime = int(document(keys.get("status")).get("optime") or 0)
    members = [
        member(name.split("/", 1)[1], document(value), leader, synchronous, optime)
        for name, value in sorted(keys.items()) if name.startswith("members/")
    ]  # fmt: skip
    return {
        "initialize": keys.get("initialize", ""), "leader": leader, "members": members, "config": config,
        "paused": bool(config.get("pause")), "synchronous_mode": bool(config.get("synchronous_mode")), "synchronous": synchronous,
        "pending_restart": [item["name"] for item in members if item["pending_restart"]],
    }  # fmt: skip


def same(wanted, found):
    """Whether a value means what is there: numbers may be text, and booleans PostgreSQL's words."""

    def plain(value):
        return {"true": "on", "false": "off"}.get(str(value).lower(), str(value).lower())

    return plain(wanted) == plain(found)


def differences(wanted, found):
    """The part of what is wanted that is not there, as Patroni's own patch."""
    patch = {}
    for name, value in wanted.items():
        if isinstance(value, dict):
            inner = differences(value, found.get(name) if isinstance(found.get(name), dict) else {})
            if inner:
                patch[name] = inner
        elif name not in found or not same(value, found[name]):
            patch[name] = value
    return patch
