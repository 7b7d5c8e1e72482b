#!/usr/bin/python
"""One member of a cluster of Patroni's: look at it, take a live instance over, give it back, let another lead."""

from __future__ import annotations

DOCUMENTATION = r"""
module: patroni_node
short_description: Look at a member, and take the steps by which Patroni takes over an instance or gives it back
description:
  - C(look) and C(status) change nothing, and ask etcd itself, so that they answer where Patroni does not run.
  - Every other action does one step, and nothing where it has been done.
options:
  action:
    description: What to do.
    type: str
    choices: [look, status, prepare, wait, restart, lock, apply, switchover, pause, hand_back]
    required: true
  place:
    description: >-
      The member: C(scope), C(member), C(members), C(host), C(api_port), C(etcd), C(certificate), C(key), C(ca), C(version), C(cluster),
      C(files), C(drop_in) and C(dynamic).
    type: dict
    required: true
  candidate:
    description: For C(switchover), who is to lead.
    type: str
    default: ""
  seconds:
    description: How long to wait.
    type: int
    default: 60
author: Stepladder
"""

import json
import os
import pwd
import re
import ssl
import struct
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.patroni_etcd import Etcd, Unreachable, cluster, differences
from ansible.module_utils.stepladder_units import Refused, journal, systemctl, text_of

UNIT, FILE = "patroni.service", "/etc/patroni/config.yml"
PROPERTIES = "ActiveState,UnitFileState,StateChangeTimestamp,ExecMainStartTimestamp"
# What Patroni decides, with the least that it takes (0: whatever it is).
OWNED = {
    "max_connections": 25, "max_wal_senders": 3, "max_replication_slots": 4, "max_worker_processes": 2, "max_locks_per_transaction": 32,
    "max_prepared_transactions": 0, "wal_level": 0, "wal_keep_size": 0, "track_commit_timestamp": 0,
}  # fmt: skip
PASSED = (
    "listen_addresses",
    "port",
    "wal_log_hints",
    "hot_standby",
)  # from its own configuration, on the command line likewise
LEFT = "conf.d/05-left-by-patroni.conf"
REWIND = (
    "pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)", "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)  # fmt: skip


def as_postgres(*command, text=None, timeout=60):
    """Run a program as the system user postgres; KeyError where there is none."""
    user = pwd.getpwnam("postgres")
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd="/", timeout=timeout, user=user.pw_uid, group=user.pw_gid,
        extra_groups=os.getgrouplist("postgres", user.pw_gid),
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "stepladder"},
    )  # fmt: skip


def unlink(path):
    if os.path.lexists(path):
        os.unlink(path)


def unix(stamp):
    return int(stamp.lstrip("@") or 0) if stamp.lstrip("@").isdigit() else 0


# systemd calls a unit's stop for a server that has ended by itself too; by then the one that Patroni starts may run.
GUARD = """# Patroni starts this instance (role patroni).
[Service]
Restart=no
ExecStop=
ExecStop=/bin/sh -c 'test -z "$$MAINPID" || exec /usr/bin/pg_ctlcluster --skip-systemctl-redirect -m fast %i stop'
"""


class Member:
    """This host's instance, its Patroni, and what etcd says of the cluster."""

    def __init__(self, place):
        self.place, self.name, self.scope = place, place["member"], place["scope"]
        self.configuration = "/etc/postgresql/%(version)s/%(cluster)s" % place
        named = re.findall(r"(?m)^\s*data_directory\s*=\s*'([^']+)'", text_of(self.configuration + "/postgresql.conf"))
        self.data = named[-1] if named else "/var/lib/postgresql/%(version)s/%(cluster)s" % place
        self.binaries = "/usr/lib/postgresql/%s/bin" % place["version"]
        self.unit = "postgresql@%(version)s-%(cluster)s.service" % place
        # Read after all others of the unit's.
        self.guard = "/etc/systemd/system/%s.d/zz-patroni.conf" % self.unit

    # PostgreSQL

    def postmaster(self):
        """(process, port, socket directory) of the running server; None where none runs."""
        lines = text_of(os.path.join(self.data, "postmaster.pid")).splitlines()
        if len(lines) < 5 or not lines[3].isdigit() or "postgres" not in text_of("/proc/%s/cmdline" % lines[0]):
            return None
        return lines[0], lines[3], lines[4]

    def led(self):
        """Whether the running server was started by Patroni."""
        found = self.postmaster()
        return found is not None and "%s/patroni.conf" % self.configuration in text_of("/proc/%s/cmdline" % found[0])

    def sql(self, text):
        found = self.postmaster()
        if found is None:
            raise Refused("patroni: PostgreSQL does not run on this host.")
        done = as_postgres(
            self.binaries + "/psql",
            "-XqAtw",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            found[2],
            "-p",
            found[1],
            "-d",
            "postgres",
            text=text,
        )
        if done.returncode:
            raise Refused("patroni: PostgreSQL did not answer: %s" % done.stderr.strip())
        return done.stdout.strip()

    def role(self):
        """primary, replica, restoring or none; by its own word where it runs."""
        signal = [kind for kind in ("standby", "recovery") if os.path.exists("%s/%s.signal" % (self.data, kind))]
        if not os.path.exists(self.data + "/PG_VERSION"):
            return "none"
        try:
            recovers = self.sql("select pg_is_in_recovery()") == "t"
        except Refused:
            recovers = bool(signal)
        return "primary" if not recovers else "replica" if "standby" in signal else "restoring"

    def system_identifier(self):
        try:
            with open(self.data + "/global/pg_control", "rb") as handle:
                return str(struct.unpack("=Q", handle.read(8))[0])
        except (OSError, struct.error):
            return ""

    def settings(self):
        """What the running server has of that which Patroni decides, and no less than Patroni takes."""
        names = ", ".join("'%s', current_setting('%s')" % (name, name) for name in OWNED)
        found = json.loads(self.sql("select json_build_object(%s)" % names))
        return {name: str(max(int(value), OWNED[name])) if OWNED[name] else value for name, value in found.items()}

    def account(self, user):
        """Why the replication role would not do; empty when it does."""
        name = "'%s'" % user.replace("'", "''")
        functions = ", ".join("'%s'" % function for function in REWIND)
        found = self.sql(
            "select rolreplication, (select bool_and(has_function_privilege(r.oid, p.oid, 'execute')) from pg_proc p"
            " where p.oid = any (array[%s]::regprocedure[])) from pg_roles r where rolname = %s" % (functions, name)
        )
        return {
            "": "does not exist",
            "f|t": "may not replicate",
            "f|f": "may not replicate",
            "t|f": "may not run what pg_rewind reads by",
        }.get(found, "")

    def streams(self):
        return self.sql("select count(*) from pg_stat_wal_receiver where status = 'streaming'") == "1"

    # Debian's scripts

    def start_mode(self):
        lines = [line.split("#")[0].strip() for line in text_of(self.configuration + "/start.conf").splitlines()]
        return next((line for line in lines if line), "auto")

    def set_start(self, mode, why):
        if self.start_mode() == mode:
            return False
        self.write(self.configuration + "/start.conf", "# %s\n%s\n" % (why, mode), 0o644)
        return True

    def keep_systemd_away(self):
        """A server that Patroni stops looks like a failure to the unit that had started it, which must not start another."""
        if os.path.exists(self.guard):
            return False
        os.makedirs(os.path.dirname(self.guard), exist_ok=True)
        with open(self.guard, "w") as out:
            os.fchmod(out.fileno(), 0o644)
            out.write(GUARD)
        systemctl("daemon-reload")
        return True

    def let_systemd_again(self):
        unlink(self.guard)
        systemctl("daemon-reload")
        systemctl("reset-failed", self.unit)

    def write(self, path, text, mode):
        """Replace a file of postgres' atomically."""
        user = pwd.getpwnam("postgres")
        with open(path + ".new", "w") as out:
            os.fchmod(out.fileno(), mode)
            os.fchown(out.fileno(), user.pw_uid, user.pw_gid)
            out.write(text)
        os.replace(path + ".new", path)

    # Patroni

    def etcd(self):
        place = self.place
        return Etcd(place["etcd"], place["ca"], place["certificate"], place["key"], self.scope)

    def cluster(self):
        """{reached, words, ...}: the cluster as etcd has it."""
        try:
            return {"reached": True, "words": "", **cluster(self.etcd().keys())}
        except (Unreachable, OSError, ssl.SSLError) as error:
            return {"reached": False, "words": str(error), **cluster({})}

    def here(self, found):
        return next((item for item in found["members"] if item["name"] == self.name), {})

    def ctl(self, *words, text=None):
        done = subprocess.run(
            ("patronictl", "-c", FILE, *words), input=text, capture_output=True, text=True, timeout=180,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "HOME": "/root", "COLUMNS": "200"},
        )  # fmt: skip
        said = (done.stdout + done.stderr).strip()
        if done.returncode or "Failed" in said or "failed" in said:
            raise Refused("patroni: `patronictl %s` did not succeed: %s" % (" ".join(words), said[-1500:]))
        return said

    def edit(self, patch):
        self.ctl("edit-config", "--apply", "-", "--force", self.scope, text=json.dumps(patch))

    def until(self, what, seconds, words):
        end = time.monotonic() + seconds
        while True:
            try:
                if what():
                    return
            except Refused:
                pass
            if time.monotonic() > end:
                raise Refused(
                    "patroni: after %d s %s. The last lines of %s:\n%s"
                    % (seconds, words, UNIT, journal(UNIT, 0, 8)[-2000:])
                )
            time.sleep(0.3)


def served_is_old(place):
    """Whether Patroni's interface shows another certificate than the file; None where it does not answer."""
    try:
        shown = ssl.get_server_certificate((place["host"], int(place["api_port"])), timeout=3)
    except (OSError, ssl.SSLError, ValueError):
        return False
    first = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text_of(place["certificate"]), re.S)
    return first is not None and ssl.PEM_cert_to_DER_cert(first.group()) != ssl.PEM_cert_to_DER_cert(shown)


def look(node, user):
    place, found = node.place, node.cluster()
    words = dict(
        line.split("=", 1)
        for line in systemctl("show", "--timestamp=unix", "-p", PROPERTIES, UNIT)[1].splitlines()
        if "=" in line
    )
    active = words.get("ActiveState") == "active"
    running, role = node.postmaster() is not None, node.role()
    files = [place["certificate"], place["key"], place["ca"]]
    missing = [path for path in files if not os.path.exists(path)]
    problem, account = "", ""
    try:
        ssl.create_default_context(cafile=place["ca"]).load_cert_chain(place["certificate"], place["key"])
    except (OSError, ssl.SSLError) as error:
        problem = str(error)
    configured = os.path.exists(node.configuration + "/postgresql.conf")
    denied = (
        [path for path in files if path not in missing and as_postgres("test", "-r", path).returncode]
        if configured
        else []
    )
    adopted = node.start_mode() == "disabled" and words.get("UnitFileState") == "enabled"
    if running and not adopted:
        account = node.account(user)
    newest = max([os.stat(path).st_mtime for path in place["files"] if os.path.exists(path)] or [0])
    sandbox = os.stat(place["drop_in"]).st_mtime if os.path.exists(place["drop_in"]) else 0
    return {
        "configured": configured, "data_directory": node.data, "data_version": text_of(node.data + "/PG_VERSION").strip(),
        "system_identifier": node.system_identifier(), "role": role, "running": running, "led": node.led(), "active": active,
        "adopted": adopted, "start": node.start_mode(), "etcd": found, "state": node.here(found).get("state", ""),
        "unreadable": missing + denied, "tls_problem": problem if not missing else "", "account": account,
        "stale": active and (newest > unix(words.get("StateChangeTimestamp", "")) + 1 or served_is_old(place)),
        "sandbox_stale": active and sandbox > unix(words.get("ExecMainStartTimestamp", "")) + 1,
        "differs": differences(place["dynamic"], found["config"]) if found["config"] else {},
    }  # fmt: skip


def status(node):
    found = node.cluster()
    return {name: value for name, value in found.items() if name != "config"}


def prepare(node):
    """Say to etcd what all members have, unless it knows; and see that nobody else starts the instance."""
    changed = False
    if node.role() == "primary":
        wanted = json.loads(json.dumps(node.place["dynamic"]))
        wanted["postgresql"]["parameters"] = {**node.settings(), **(wanted["postgresql"]["parameters"] or {})}
        # Replicas that Patroni does not know yet use slots that it would drop.
        wanted["ignore_slots"] = [
            {"name": name, "type": "physical"} for name in node.place["members"] if name != node.name
        ]
        changed = node.etcd().put_new("config", json.dumps(wanted, separators=(",", ":")))
    changed = node.keep_systemd_away() or changed
    if node.start_mode() == "auto":
        unlink(node.data + "/patroni.dynamic.json")  # of an earlier time: it would bring back what counted then
        changed = node.set_start("manual", "Patroni is taking over (role patroni).") or changed
    return changed


def wait(node, seconds):
    def there():
        found = node.cluster()
        if node.here(found).get("name") != node.name or node.postmaster() is None:
            return False
        return found["leader"] == node.name if node.role() == "primary" else node.streams()

    node.until(there, seconds, "%s neither leads nor follows" % node.name)


def restart(node, seconds):
    if node.led():
        return False
    node.sql("checkpoint")  # what the server has to write while it stops
    node.ctl("restart", node.scope, node.name, "--force")
    node.until(
        lambda: node.led() and node.cluster()["leader"] == node.name and node.sql("select pg_is_in_recovery()") == "f",
        seconds, "PostgreSQL is not back as the leader",
    )  # fmt: skip
    return True


def restart_and_lock(node, seconds):
    """In one call, for clients wait meanwhile."""
    if not restart(node, seconds):
        return False
    lock(node)
    return True


def lock(node):
    ignored = node.cluster()["config"].get("ignore_slots") or []
    rest = [item for item in ignored if item.get("name") != node.name]
    if len(rest) != len(ignored):
        node.edit({"ignore_slots": rest or None})
    unlink("%s/%s" % (node.configuration, LEFT))
    systemctl("reset-failed", node.unit)
    return node.set_start("disabled", "Patroni starts and stops this instance (role patroni).")


def apply(node):
    patch = differences(node.place["dynamic"], node.cluster()["config"])
    if patch:
        node.edit(patch)
    return bool(patch)


def switchover(node, candidate, seconds):
    node.ctl("switchover", node.scope, "--candidate", candidate, "--force")

    def done():
        found = node.cluster()
        timelines = {item["timeline"] for item in found["members"]}
        return (
            found["leader"] == candidate and len(timelines) == 1
            and all(item["state"] == "streaming" for item in found["members"] if item["name"] != candidate)
        )  # fmt: skip

    node.until(done, seconds, "%s does not lead, or not all others follow it" % candidate)
    return True


def pause(node, seconds):
    changed, found = False, node.cluster()
    if found["synchronous_mode"]:
        node.edit({"synchronous_mode": None})
        changed = True
    if found["synchronous"] or changed:
        node.until(lambda: not node.cluster()["synchronous"], seconds, "commits still wait for a replica")
    if not found["paused"]:
        node.ctl("pause", "--wait", node.scope)
        node.until(
            lambda: all(item["paused"] for item in node.cluster()["members"]),
            seconds,
            "not all members know that they are paused",
        )
        changed = True
    return changed


def quoted(value):
    return "'%s'" % value.replace("\\", "\\\\").replace("'", "''")


def hand_back(node, seconds):
    """Stop the server that Patroni started, and start it in its own unit with the settings that it had."""
    found, role = node.cluster(), node.role()
    if node.led():
        names = PASSED + (("primary_conninfo", "primary_slot_name") if role == "replica" else ())
        values = {**node.settings(), **{name: node.sql("select current_setting('%s')" % name) for name in names}}
        lines = "".join("%s = %s\n" % (name, quoted(value)) for name, value in sorted(values.items()))
        said = "# What Patroni had decided when it was left; later files win.\n"
        node.write("%s/%s" % (node.configuration, LEFT), said + lines, 0o640)
        node.sql("checkpoint")
        node.set_start("auto", "Started at boot, by Debian's own unit.")
        done = as_postgres(
            node.binaries + "/pg_ctl",
            "stop",
            "-D",
            node.data,
            "-m",
            "fast",
            "-w",
            "-t",
            str(seconds),
            timeout=seconds + 30,
        )
        if done.returncode:
            raise Refused("patroni: PostgreSQL did not stop: %s" % (done.stderr or done.stdout).strip())
        for name in ("patroni.conf", "patroni.conf.backup", "pg_hba.conf.backup", "pg_ident.conf.backup"):
            unlink("%s/%s" % (node.configuration, name))
        unlink(node.data + "/patroni.dynamic.json")
        node.let_systemd_again()
        code, output = systemctl("start", node.unit, timeout=None)
        if code:
            raise Refused("patroni: %s did not start: %s\n%s" % (node.unit, output, journal(node.unit, 0, 8)[-2000:]))
    node.set_start("auto", "Started at boot, by Debian's own unit.")
    if role == "primary" and not [item for item in found["members"] if item["name"] != node.name]:
        node.etcd().delete_all()
    else:
        node.etcd().delete("members/" + node.name)
    return True


def act(params, check):
    node, action, seconds = Member(params["place"]), params["action"], params["seconds"]
    if action == "look":
        return {"changed": False, **look(node, params["place"]["user"])}
    if action == "status":
        return {"changed": False, "status": status(node)}
    if action == "wait":
        wait(node, seconds)
        return {"changed": False}
    if check:
        return {"changed": True}
    steps = {
        "prepare": lambda: prepare(node), "restart": lambda: restart_and_lock(node, seconds), "lock": lambda: lock(node),
        "apply": lambda: apply(node), "switchover": lambda: switchover(node, params["candidate"], seconds),
        "pause": lambda: pause(node, seconds), "hand_back": lambda: hand_back(node, seconds),
    }  # fmt: skip
    try:
        return {"changed": steps[action]()}
    except (Unreachable, ssl.SSLError) as error:
        raise Refused("patroni: etcd could not be asked: %s" % error)


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str", "required": True,
                "choices": ["look", "status", "prepare", "wait", "restart", "lock", "apply", "switchover", "pause", "hand_back"],
            },
            "place": {"type": "dict", "required": True},
            "candidate": {"type": "str", "default": ""},
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
