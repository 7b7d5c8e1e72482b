#!/usr/bin/python
"""Look at a Redis or Valkey instance, and bring the running server to its configuration without a restart."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_instance
short_description: Compare a running Redis or Valkey with its configuration, and bring it there
description:
  - The program itself says what a configuration means; it is started on the new text for a moment, on no port and without
    data, and what it then reports is compared with what the running server reports.
  - C(look) changes nothing. C(persist) turns the append-only log on in the running server and waits until it is written.
    C(apply) sets settings and users, has renewed certificates read, and proves an authenticated PING over verified TLS.
options:
  action:
    description: What to do.
    type: str
    choices: [look, persist, apply]
    required: true
  name:
    description: The instance's name.
    type: str
    required: true
  flavor:
    description: redis or valkey.
    type: str
    required: true
  config:
    description: Text of redis.conf.
    type: str
    required: true
  acl:
    description: Text of users.acl; C(@LOCAL@) stands for the hash of the password that only this host knows.
    type: str
    required: true
  admin:
    description: Name of the administrator.
    type: str
    required: true
  admin_password:
    description: The administrator's password.
    type: str
    required: true
  bind:
    description: Addresses that the server listens on.
    type: list
    elements: str
    required: true
  port:
    description: Port that it listens on.
    type: int
    required: true
  certificate:
    description: Path of the server's certificate.
    type: str
    required: true
  key:
    description: Path of its key.
    type: str
    required: true
  ca:
    description: Path of the CA's certificate.
    type: str
    required: true
  tls_group:
    description: Group that may read the key.
    type: str
    required: true
  tls_name:
    description: Name that the certificate must carry; empty is any.
    type: str
    default: ""
author: Stepladder
"""

import glob
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.redis_place import ARGUMENTS, Place, bring_users, command, read
from ansible.module_utils.redis_wire import ErrorReply, Refused, leaf, meaning, rules, setting

# What the trial run has of its own, and what the server decides at run time (whose replica it is).
OF_THE_PLACE = {"port", "tls-port", "unixsocket", "pidfile", "dir", "aclfile", "supervised", "logfile"}
OF_THE_TOPOLOGY = {"replicaof", "slaveof", "primaryof"}
TLS_FILES = ("tls-cert-file", "tls-key-file", "tls-ca-cert-file")


class Instance(Place):
    """A server of data on this host."""

    def __init__(self, params):
        super().__init__(params)
        self.marker = "/run/redis-%s.tls" % self.name

    def wanted(self):
        """What the new texts mean, in the program's words: (settings, users)."""
        try:
            return meaning(
                self.program,
                self.user,
                self.params["tls_group"],
                self.params["config"],
                self.params["acl"],
                self.local_hash,
            )
        except Refused as refusal:
            raise Refused(
                "redis: %s does not take the new configuration of %s: %s. The old one stays. Correct redis_settings, "
                "redis_users or the TLS files." % (self.program, self.name, refusal)
            )

    def tls_is_stale(self, client, served):
        """Whether the files hold something that the server has not read."""
        if served is not None and served != leaf(self.params["certificate"]):
            return True
        info = client.info("server")
        since = time.time() - int(info["uptime_in_seconds"])
        run, _, when = read(self.marker).partition(" ")
        if run == info["run_id"]:
            since = float(when)
        return any(os.stat(self.params[key]).st_ctime > since + 1 for key in ("certificate", "key", "ca"))

    def note_tls(self, client):
        with open(self.marker, "w", encoding="ascii") as handle:
            handle.write("%s %f" % (client.info("server")["run_id"], time.time()))


def kind(appendonly, save):
    """How data outlives the process."""
    return "log" if appendonly == "yes" else ("snapshots" if save else "none")


def keys(info):
    return sum(int(found) for value in info.values() for found in re.findall(r"^keys=(\d+)", value))


def differences(wanted, client, port):
    """Settings and users of the running server that are not what they should be; the values are the wanted ones."""
    settings, users = wanted
    now = client.config()
    differing = {
        name: value
        for name, value in settings.items()
        if name not in OF_THE_PLACE and name not in OF_THE_TOPOLOGY and now.get(name) != value
    }
    if now.get("tls-port") != str(port):
        differing["tls-port"] = str(port)
    listed = client.users()
    changed = {name: rules for name, rules in users.items() if listed.get(name) != rules}
    return differing, changed, sorted(set(listed) - set(users))


def look(instance):
    params = instance.params
    old = read("%s/redis.conf" % instance.etc)
    files = glob.glob("%s/*.rdb" % instance.data) + glob.glob("%s/appendonlydir/*" % instance.data)
    found = {
        **instance.facts(),
        "data_files": [os.path.relpath(path, instance.data) for path in sorted(files)],
        "wanted_persistence": kind(setting(params["config"], "appendonly"), setting(params["config"], "save")),
        "persistence": kind(setting(old, "appendonly"), setting(old, "save")) if old else "",
        "differs": [],
        "proved": False,
        "key_count": 0,
        "role": "",
        "primary": "",
    }
    if found["installed"] and not found["unreadable"]:
        wanted = instance.wanted()
    if not found["running"] or found["flavor"] != params["flavor"] or found["is_sentinel"]:
        return found
    client = instance.connect_patiently()
    try:
        info, config = client.info("all"), client.config()
        found["persistence"] = kind(config["appendonly"], config["save"])
        found["key_count"] = keys(info)
        found["role"] = info["role"]
        if info["role"] == "slave":
            found["primary"] = "%s:%s" % (info["master_host"], info["master_port"])
        if found["installed"] and not found["unreadable"]:
            settings, users, surplus = differences(wanted, client, params["port"])
            reason, served = instance.proof()
            found["proved"] = not reason
            found["differs"] = sorted(settings) + sorted(users) + surplus
            if instance.tls_is_stale(client, served):
                found["differs"].append("certificate")
    finally:
        client.close()
    return found


def persist(instance):
    """Write the running server's data to a log of its own, before a configuration says that a start reads one."""
    client = instance.connect_patiently()
    try:
        client.call("CONFIG", "SET", "appendonly", "yes")
        while True:
            info = client.info("persistence")
            if info["aof_rewrite_in_progress"] == "0" and info["aof_rewrite_scheduled"] == "0":
                break
            time.sleep(0.2)
        if info["aof_last_bgrewrite_status"] != "ok" or info["aof_last_write_status"] != "ok":
            client.call("CONFIG", "SET", "appendonly", "no")
            raise Refused(
                "redis: %s could not write its log in %s; it goes on as it was, and no configuration was changed. Look at "
                "`journalctl -u %s`: the disk may be full." % (instance.unit, instance.data, instance.unit)
            )
    finally:
        client.close()


def apply(instance, check):
    """Bring the running server to its configuration; returns the module's result."""
    params = instance.params
    wanted = instance.wanted()
    client = instance.connect_patiently()
    done, pending = [], []
    try:
        settings, users, surplus = differences(wanted, client, params["port"])
        _reason, served = instance.proof()
        stale = instance.tls_is_stale(client, served) or any(name in settings for name in TLS_FILES)
        if check:
            listed = sorted(settings) + ["user %s" % name for name in [*sorted(users), *surplus]]
            return {"changed": bool(listed or stale), "set": listed, "pending": []}
        if stale:
            wanted_files = [word for name in TLS_FILES for word in (name, wanted[0][name])]
            command(client, "CONFIG", "SET", *wanted_files)
            done.append("certificate")
        for name in sorted(set(settings) - set(TLS_FILES)):
            try:
                client.call("CONFIG", "SET", name, settings[name])
                done.append(name)
            except ErrorReply as error:
                if "immutable" not in str(error) and "protected" not in str(error):
                    raise Refused("redis: %s did not take %s: %s" % (instance.unit, name, error))
                pending.append(name)
        done += ["user %s" % name for name in bring_users(client, wanted[1], rules(params["acl"], instance.local_hash))]
        left = [name for name in sum(map(list, differences(wanted, client, params["port"])), []) if name not in pending]
        if left:
            raise Refused("redis: %s has taken %s and still has other values." % (instance.unit, ", ".join(left)))
        instance.note_tls(client)
        reason, served = instance.proof()
        if reason:
            raise Refused(
                "redis: %s runs, but an authenticated PING over verified TLS fails: %s. Check redis_bind, redis_tls_* and "
                "the certificate's names and dates." % (instance.unit, reason)
            )
        if served != leaf(params["certificate"]):
            raise Refused(
                "redis: %s still serves another certificate than %s." % (instance.unit, params["certificate"])
            )
        info = client.info("server")
    finally:
        client.close()
    return {"changed": bool(done), "set": done, "pending": pending, "run_id": info["run_id"]}


def main():
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "action": {"type": "str", "required": True, "choices": ["look", "persist", "apply"]},
        },
        supports_check_mode=True,
    )
    instance = Instance(module.params)
    try:
        if module.params["action"] == "look":
            module.exit_json(changed=False, **look(instance))
        if module.params["action"] == "persist":
            if not module.check_mode:
                persist(instance)
            module.exit_json(changed=True)
        module.exit_json(**apply(instance, module.check_mode))
    except (Refused, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
