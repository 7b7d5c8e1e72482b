#!/usr/bin/python
"""One member of an etcd cluster: look at it and at the others, start it, wait for it, restart it, replace one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: etcd_node
short_description: Look at a member of an etcd cluster, start it, and give a lost member's place to this host
description:
  - C(look), C(status) and C(replaceable) change nothing.
  - C(start) does not wait, since a start ends only when enough members have started. C(wait) does.
options:
  action:
    description: What to do.
    type: str
    choices: [look, status, start, wait, restart, replaceable, replace]
    required: true
  place:
    description: >-
      The member: C(member), C(members), C(client_port), C(peer_port), C(data), C(marker), C(first), C(files), C(certificate), C(key),
      C(ca) and C(tls_group).
    type: dict
    required: true
  state:
    description: For C(start), whether a member without data begins a new cluster or joins one.
    type: str
    default: new
  replaces:
    description: Name of the member whose place this host takes.
    type: str
    default: ""
  seconds:
    description: How long to wait for an answer.
    type: int
    default: 60
author: Stepladder
"""

import grp
import os
import ssl
import stat
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.etcd_api import Api, Unreachable, identity, wal_identity
from ansible.module_utils.stepladder_units import Refused, journal, systemctl, text_of

UNIT = "etcd.service"
PROPERTIES = "ActiveState,SubState,ExecMainStartTimestamp,MainPID"


def last_lines():
    return journal(UNIT, 0, 8)[-2000:]


def unit():
    """What systemd says of the unit: {ActiveState, ...}."""
    code, output = systemctl("show", "--timestamp=unix", "-p", PROPERTIES, UNIT)
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line) if code == 0 else {}


def unreadable(paths, group):
    """Those of the paths that are not there, or that neither everybody nor the group can read."""
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        gid = -1
    found = []
    for path in paths:
        try:
            info = os.stat(path)
        except OSError:
            found.append(path)
            continue
        if not (info.st_mode & stat.S_IROTH or (info.st_gid == gid and info.st_mode & stat.S_IRGRP)):
            found.append(path)
    return found


class Node:
    """This host's member and the others."""

    def __init__(self, place):
        self.place, self.member = place, place["member"]
        self.hosts = {item["name"]: item["host"] for item in place["members"]}
        self.data, self.first, self.marker = place["data"], place["first"], place["marker"]

    def api(self, name):
        place = self.place
        return Api(self.hosts[name], int(place["client_port"]), place["ca"], place["certificate"], place["key"])

    def peer(self, name):
        return "https://%s:%s" % (self.hosts[name], self.place["peer_port"])

    def has_data(self):
        return os.path.isdir(os.path.join(self.data, "member/wal"))

    def ask(self, name):
        """What a member says of itself and of the cluster: {name, reached, words, ...}."""
        nothing = {"name": name, "reached": False, "words": "", "healthy": False}
        try:
            api = self.api(name)
            found = api.ask("/v3/maintenance/status", {})
            members = api.ask("/v3/cluster/member/list", {"linearizable": False})["members"]
        except (Unreachable, OSError, ssl.SSLError) as error:
            return {**nothing, "words": str(error)}
        header = found["header"]
        return {
            **nothing, "reached": True, "healthy": api.healthy(), "members": members, "version": found.get("version", ""),
            "cluster_id": identity(header["cluster_id"]), "member_id": identity(header["member_id"]),
            "leader_id": identity(found.get("leader", 0)), "size_mb": round(int(found.get("dbSize", 0)) / 1024**2, 1),
            "errors": found.get("errors", []),
        }  # fmt: skip

    def named(self, entry):
        """A listed member's name; one that never started has told none, and is known by its address."""
        urls = entry.get("peerURLs") or [""]
        return entry.get("name") or next((name for name in self.hosts if self.peer(name) == urls[0]), urls[0])

    def listed(self, answers):
        """The members in the view of the first that answers as one of a whole."""
        return next((answer["members"] for answer in answers if answer["reached"] and answer["healthy"]), [])

    def wait(self, seconds):
        """Until a quorum answers through this member; what told it to be new is then gone."""
        end = time.monotonic() + seconds
        try:
            api = self.api(self.member)
            while not api.healthy():
                if time.monotonic() > end:
                    there = [name for name in self.hosts if self.ask(name)["reached"]]
                    raise Refused(
                        "etcd: %s does not answer as one of a quorum after %d s; of %s answer: %s. It goes on trying. A first start"
                        " needs most members at once (not one after the other). Its last lines:\n%s"
                        % (self.member, seconds, ", ".join(self.hosts), ", ".join(there) or "none", last_lines())
                    )
                time.sleep(0.3)
        finally:
            if self.has_data() and os.path.exists(self.first):
                os.unlink(self.first)
        self.note()

    def note(self):
        """Remember outside of the data that this host has been a member."""
        text = "member %s of cluster %s\n" % wal_identity(self.data)
        if text_of(self.marker) != text:
            with open(self.marker, "w") as out:
                out.write(text)

    def tell_first(self, lines):
        """A file that lives until the next boot at most, and without which a member without data does not start."""
        handle = os.open(self.first, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(handle, "w") as out:
            out.write("".join(lines))

    def start(self):
        systemctl("reset-failed", UNIT)
        code, output = systemctl("start", "--no-block", UNIT)
        if code:
            raise Refused("etcd: %s did not start: %s" % (UNIT, output))


def look(node):
    place, now = node.place, unit()
    others = [node.ask(name) for name in node.hosts if name != node.member]
    own = node.ask(node.member)
    running = now.get("ActiveState") in ("active", "activating", "reloading") and now.get("SubState") != "auto-restart"
    started = now.get("ExecMainStartTimestamp", "").lstrip("@")
    changed = [os.stat(path).st_mtime for path in place["files"] if os.path.exists(path)]
    member_id, cluster_id = wal_identity(node.data)
    members = node.listed([own, *others])
    listed = [item for item in members if node.peer(node.member) in item.get("peerURLs", [])]
    # The program that runs, when its data is elsewhere: not this role's.
    environment = text_of("/proc/%s/environ" % now.get("MainPID", "0")) if running else ""
    where = [line.split("=", 1)[1] for line in environment.split("\0") if line.startswith("ETCD_DATA_DIR=")]
    files = [place["certificate"], place["key"], place["ca"]]
    problem = ""
    try:
        Api("", 0, place["ca"], place["certificate"], place["key"])
    except (OSError, ssl.SSLError) as error:
        problem = str(error)
    for answer in others:
        answer.pop("members", None)
    return {
        "installed": os.path.exists("/usr/bin/etcd"), "running": running, "healthy": own["healthy"],
        "has_data": node.has_data(), "member_id": member_id, "cluster_id": cluster_id, "others": others,
        "marker": text_of(node.marker).strip(), "listed": sorted(node.named(item) for item in members),
        "awaited": bool(listed) and not listed[0].get("clientURLs"),
        "foreign": where[-1] if where and where[-1] != node.data else "",
        "unreadable": unreadable(files, place["tls_group"]), "tls_problem": problem,
        "stale": bool(running and started.isdigit() and changed and max(changed) > int(started) + 1),
    }  # fmt: skip


def status(node):
    """The whole cluster as the members see it."""
    answers = [node.ask(name) for name in node.hosts]
    whole = [answer for answer in answers if answer["healthy"]]
    keep = ("name", "reached", "words", "healthy", "version", "size_mb", "member_id", "errors")
    leader = whole[0]["leader_id"] if whole else ""
    return {
        "quorum": bool(whole), "leader": next((a["name"] for a in answers if a.get("member_id") == leader), ""),
        "members": [{name: answer.get(name, "") for name in keep} for answer in answers],
    }  # fmt: skip


def replaceable(node, replaces):
    """(entry of the lost member or None, a member to ask, all entries); raises Refused."""
    answers = [node.ask(name) for name in node.hosts if name != node.member]
    whole = next((answer for answer in answers if answer["healthy"]), None)
    if whole is None:
        raise Refused(
            "etcd: no other member serves (%s), and without a quorum nobody can be replaced. etcd changed nothing."
            % ", ".join("%s: %s" % (a["name"], a["words"] or "no quorum") for a in answers)
        )
    entry = next((item for item in whole["members"] if node.named(item) == replaces), None)
    others = [item["name"] for item in answers if item["healthy"]]
    if replaces in others:
        raise Refused(
            "etcd: %s is a member that serves, and only a lost one is replaced. etcd changed nothing. Stop it first, or correct"
            " etcd_replaces." % replaces
        )
    # Fewer than there should be: a run that was cut off has taken the lost one out already.
    in_it = any(node.peer(node.member) in item["peerURLs"] for item in whole["members"])
    if entry is None and not in_it and len(whole["members"]) >= len(node.hosts):
        raise Refused(
            "etcd: the cluster has no member %s (it has %s). etcd changed nothing. Name the lost one in etcd_replaces."
            % (replaces, ", ".join(sorted(node.named(item) for item in whole["members"])))
        )
    if node.has_data():
        raise Refused(
            "etcd: %s has data, and a member that takes another's place begins without any. etcd changed nothing. If this member is"
            " whole, run the role as usual; else move the data away." % node.data
        )
    return entry, whole["name"], whole["members"]


def replace(node, replaces, seconds):
    entry, ask, members = replaceable(node, replaces)
    api = node.api(ask)
    own = node.peer(node.member)
    # One that was already put in by a run that was cut off has not started, and so has no clients' address.
    if not any(own in item["peerURLs"] and not item.get("clientURLs") for item in members):
        try:
            if entry is not None:
                api.ask("/v3/cluster/member/remove", {"ID": entry["ID"]}, timeout=15)
            members = api.ask("/v3/cluster/member/add", {"peerURLs": [own]}, timeout=15)["members"]
        except Unreachable as error:
            raise Refused("etcd: %s did not take %s out and this host in: %s" % (ask, replaces, error))
    all_of_them = ",".join("%s=%s" % (node.named(item), item["peerURLs"][0]) for item in members)
    node.tell_first(["ETCD_INITIAL_CLUSTER_STATE=existing\n", 'ETCD_INITIAL_CLUSTER="%s"\n' % all_of_them])
    node.start()
    node.wait(seconds)


def restart(node, seconds):
    away = [name for name in node.hosts if name != node.member and not node.ask(name)["healthy"]]
    if away:
        raise Refused(
            "etcd: %s waits for a restart (its new configuration is written), and %s does not serve, so that the cluster might lose its"
            " quorum. Mend that first, then run this again." % (node.member, ", ".join(away))
        )
    code, output = systemctl("restart", UNIT, timeout=None)
    if code:
        raise Refused("etcd: %s did not restart: %s. Its last lines:\n%s" % (UNIT, output, last_lines()))
    node.wait(seconds)


def act(params, check):
    node, action = Node(params["place"]), params["action"]
    if action == "look":
        return {"changed": False, **look(node)}
    if action == "status":
        return {"changed": False, "status": status(node)}
    if action == "replaceable":
        # A run that was cut off after this host was put in, and before it had any data, goes on.
        joined = node.has_data() and node.api(node.member).healthy()
        if not joined:
            replaceable(node, params["replaces"])
        return {"changed": False, "done": joined}
    if action == "wait":
        node.wait(params["seconds"])
        return {"changed": False}
    if not check:
        if action == "replace":
            replace(node, params["replaces"], params["seconds"])
        elif action == "restart":
            restart(node, params["seconds"])
        else:
            if not node.has_data():
                node.tell_first(["ETCD_INITIAL_CLUSTER_STATE=%s\n" % params["state"]])
            node.start()
    return {"changed": True}


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str", "required": True,
                "choices": ["look", "status", "start", "wait", "restart", "replaceable", "replace"],
            },
            "place": {"type": "dict", "required": True},
            "state": {"type": "str", "default": "new"},
            "replaces": {"type": "str", "default": ""},
            "seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )  # fmt: skip
    try:
        result = act(module.params, module.check_mode)
    except Refused as refusal:
        module.fail_json(msg=str(refusal))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
