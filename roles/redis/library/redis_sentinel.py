#!/usr/bin/python
"""Look at a Sentinel, and bring it to what it should watch without losing what it has found out."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_sentinel
short_description: Compare a Sentinel with what it should watch, and bring it there
description:
  - C(look) changes nothing. C(apply) sets users, adds, changes and removes what is watched, and proves an authenticated
    PING over verified TLS. The address of what is watched already is never changed, since a failover may have.
options:
  action:
    description: What to do.
    type: str
    choices: [look, apply]
    required: true
  monitors:
    description: What to watch, a list of C(name), C(host), C(port), C(quorum), C(user), C(password), C(down_after_seconds)
      and C(failover_timeout_seconds).
    type: list
    elements: dict
    required: true
  name: {description: The Sentinel's name., type: str, required: true}
  flavor: {description: redis or valkey., type: str, required: true}
  config: {description: Text of its configuration., type: str, required: true}
  acl: {description: Text of users.acl., type: str, required: true}
  admin: {description: Name of the administrator., type: str, required: true}
  admin_password: {description: The administrator's password., type: str, required: true}
  bind: {description: Addresses that it listens on., type: list, elements: str, required: true}
  port: {description: Port that it listens on., type: int, required: true}
  certificate: {description: Path of its certificate., type: str, required: true}
  key: {description: Path of its key., type: str, required: true}
  ca: {description: Path of the CA's certificate., type: str, required: true}
  tls_group: {description: Group that may read the key., type: str, required: true}
  tls_name: {description: Name that the certificate must carry., type: str, default: ""}
author: Stepladder
"""

import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.redis_place import ARGUMENTS, Place, bring_users, command, read
from ansible.module_utils.redis_wire import ErrorReply, Refused, leaf, meaning, rules

# The role's words for what Sentinel reports under other names, in milliseconds where it counts in them.
OPTIONS = {
    "quorum": ("quorum", 1),
    "down_after_seconds": ("down-after-milliseconds", 1000),
    "failover_timeout_seconds": ("failover-timeout", 1000),
}


class Sentinel(Place):
    """A Sentinel on this host."""

    def wanted_users(self):
        try:
            return meaning(
                self.program, self.user, self.params["tls_group"], self.params["config"], self.params["acl"],
                self.local_hash, sentinel=True,
            )[1]  # fmt: skip
        except Refused as refusal:
            raise Refused(
                "redis: %s does not take the new configuration of %s: %s. The old one stays. Correct redis_users or the "
                "TLS files." % (self.program, self.name, refusal)
            )

    def credentials(self):
        """{name: (user, password)} as Sentinel's own file has them; it tells nobody."""
        text = read("%s/state.conf" % self.data)
        users = dict(re.findall(r'^sentinel auth-user (\S+) "?([^\s"]+)"?$', text, re.M))
        passwords = dict(re.findall(r'^sentinel auth-pass (\S+) "?([^\s"]+)"?$', text, re.M))
        return {name: (users.get(name), passwords.get(name)) for name in {*users, *passwords}}

    def steps(self, client):
        """What has to be said to Sentinel, as (name for the report, command)."""
        now = {entry["name"]: entry for entry in (pairs(flat) for flat in client.call("SENTINEL", "MASTERS"))}
        known = self.credentials()
        for monitor in self.params["monitors"]:
            name = monitor["name"]
            if name not in now:
                where = (monitor["host"], str(monitor["port"]), str(monitor["quorum"]))
                yield name, ("SENTINEL", "MONITOR", name, *where)
            words = []
            if known.get(name) != (monitor["user"], monitor["password"]):
                words += ["auth-user", monitor["user"], "auth-pass", monitor["password"]]
            for option, (reported, factor) in OPTIONS.items():
                value = str(int(monitor[option]) * factor)
                if now.get(name, {}).get(reported) != value:
                    words += [reported, value]
            if words:
                yield name, ("SENTINEL", "SET", name, *words)
        for name in sorted(set(now) - {monitor["name"] for monitor in self.params["monitors"]}):
            yield name, ("SENTINEL", "REMOVE", name)


def pairs(flat):
    return dict(zip(flat[::2], flat[1::2], strict=False))


def look(place):
    found = {
        **place.facts(),
        "persistence": "none", "wanted_persistence": "none", "data_files": [], "key_count": 0,
        "differs": [], "proved": False, "restart": False, "watched": {},
    }  # fmt: skip
    wanted = place.wanted_users() if found["installed"] and not found["unreadable"] else None
    if not found["running"] or wanted is None or found["flavor"] != place.params["flavor"] or not found["is_sentinel"]:
        return found
    client = place.connect_patiently()
    try:
        listed = client.users()
        found["differs"] = sorted(name for name in {*listed, *wanted} if listed.get(name) != wanted.get(name))
        found["differs"] += sorted({name for name, _ in place.steps(client)})
        found["watched"] = watched(client)
        reason, served = place.proof()
        found["proved"] = not reason
        # Sentinel has no way to read a renewed certificate while it runs.
        found["restart"] = served is not None and served != leaf(place.params["certificate"])
    finally:
        client.close()
    return found


def watched(client):
    """{name: host:port of the primary, in Sentinel's eyes}."""
    entries = [pairs(flat) for flat in client.call("SENTINEL", "MASTERS")]
    return {entry["name"]: "%s:%s" % (entry["ip"], entry["port"]) for entry in entries}


def apply(place, check):
    wanted = place.wanted_users()
    client = place.connect_patiently()
    try:
        steps = list(place.steps(client))
        if check:
            listed = client.users()
            names = sorted("user %s" % name for name in {*listed, *wanted} if listed.get(name) != wanted.get(name))
            return {"changed": bool(steps or names), "set": names + sorted({name for name, _ in steps})}
        done = ["user %s" % name for name in bring_users(client, wanted, rules(place.params["acl"], place.local_hash))]
        for name, words in steps:
            try:
                client.call(*words)
            except ErrorReply as error:
                # Not the whole command: it has a password in it.
                raise Refused("redis: %s did not take %s of %s: %s" % (place.unit, words[1], name, error))
            done.append(name)
        command(client, "SENTINEL", "FLUSHCONFIG")
        found = watched(client)
    finally:
        client.close()
    reason, served = place.proof()
    if reason:
        raise Refused(
            "redis: %s runs, but an authenticated PING over verified TLS fails: %s. Check redis_bind, redis_tls_* and the "
            "certificate's names and dates." % (place.unit, reason)
        )
    if served != leaf(place.params["certificate"]):
        raise Refused("redis: %s still serves another certificate than %s." % (place.unit, place.params["certificate"]))
    return {"changed": bool(done), "set": done, "watched": found}


def main():
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "action": {"type": "str", "required": True, "choices": ["look", "apply"]},
            "monitors": {
                "type": "list", "elements": "dict", "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 6379},
                    "quorum": {"type": "int", "default": 2},
                    "user": {"type": "str", "default": "failover"},
                    "password": {"type": "str", "required": True, "no_log": True},
                    "down_after_seconds": {"type": "int", "default": 5},
                    "failover_timeout_seconds": {"type": "int", "default": 60},
                },
            },
        },
        supports_check_mode=True,
    )  # fmt: skip
    place = Sentinel(module.params)
    try:
        if module.params["action"] == "look":
            module.exit_json(changed=False, **look(place))
        module.exit_json(**apply(place, module.check_mode))
    except (Refused, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
