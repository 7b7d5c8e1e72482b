#!/usr/bin/python
"""Bring a release of a Gunicorn site live beside the running one, and move to it without a failed request."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gunicorn_switch
short_description: Serve another release of a Gunicorn site without a failed request
description:
  - A release together with its whole configuration is an instance, C(<release>-<fingerprint>), with a unit, a
    configuration file and a socket of its own.
  - Starts the new instance, waits until every worker has loaded the application and the health page answers through
    the instance's own socket, asks the warm paths, then moves the live link, lets the old socket's queue drain and
    stops the old instance gracefully.
  - An instance that does not get healthy is stopped and removed; the old one keeps serving and the module fails with
    the unit's last log lines.
options:
  name:
    description: The site's name; units are called C(gunicorn-<name>@<instance>.service).
    type: str
    required: true
  state:
    description: C(live) brings the release live; C(status) only tells what is.
    type: str
    choices: [live, status]
    default: live
  release:
    description: Id of the release.
    type: str
  unit:
    description: Text of the unit; C(@INSTANCE@) stands for the instance's name.
    type: str
  config:
    description: Text of gunicorn.conf.py; C(@INSTANCE@) stands for the instance's name.
    type: str
  environment_files:
    description: Files whose contents are part of the instance's fingerprint.
    type: list
    elements: str
    default: []
  required_paths:
    description: Paths that must be there before anything is started.
    type: list
    elements: str
    default: []
  user:
    description: The user that the unit runs as; it must exist and must not be root.
    type: str
  workers:
    description: How many workers must have loaded the application before the instance can go live.
    type: int
    default: 1
  health:
    description: How the health page is asked, and what it must answer.
    type: dict
    options:
      path:
        description: Path of the page.
        type: str
        required: true
      headers:
        description: Headers of the request, Host among them.
        type: dict
        default: {}
      status:
        description: The status that means healthy.
        type: int
        default: 200
      contains:
        description: Text that the answer must hold.
        type: str
        default: ""
      seconds:
        description: How long an instance may take to get healthy.
        type: int
        default: 60
  warm_paths:
    description: Paths asked, once per worker, before the instance goes live; an answer of 500 or more stops the switch.
    type: list
    elements: str
    default: []
  drain_seconds:
    description: The longest wait for connections that still queue at the old socket.
    type: int
    default: 30
  stop_seconds:
    description: How long an old instance may take to finish its requests; the unit's own stop timeout ends it before.
    type: int
    default: 60
  reload:
    description: Have systemd read its configuration again even if the instance is as it should be.
    type: bool
    default: false
author: Stepladder
"""

import glob
import hashlib
import http.client
import json
import os
import pwd
import shutil
import socket
import struct
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.stepladder_units import Refused, journal, lock, masked, read, show, systemctl, write

UNITS = "/etc/systemd/system"
# Two workers that fail at import, and the process that gives up on them, take sixty.
JOURNAL_LINES = "100"
# How long the old socket's queue must have been empty: a worker reads a connection it has just accepted within this.
SETTLED_SECONDS = 0.5
PROPERTIES = "LoadState,ActiveState,SubState,Result,NRestarts,NeedDaemonReload,ExecMainStatus"


def state_of(unit):
    return show([unit], PROPERTIES)[unit]


class Unhealthy(Exception):
    """Why an instance cannot go live."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Site:
    """Where a site's instances live on this host."""

    def __init__(self, name, units=UNITS, etc="/etc", state="/var/lib", run="/run"):
        self.units = units
        self.prefix = f"gunicorn-{name}@"
        self.configs = f"{etc}/gunicorn-{name}"
        self.state = f"{state}/gunicorn-{name}"
        self.run = f"{run}/gunicorn-{name}"
        self.link = f"{self.run}/live.sock"

    def unit(self, instance):
        return f"{self.prefix}{instance}.service"

    def unit_file(self, instance):
        return f"{self.units}/{self.unit(instance)}"

    def config_file(self, instance):
        return f"{self.configs}/{instance}.py"

    def wants(self, instance):
        return f"{self.units}/multi-user.target.wants/{self.unit(instance)}"

    def folder(self, instance):
        return f"{self.run}/{instance}"

    def socket(self, instance):
        return f"{self.folder(instance)}/web.sock"

    def recorded(self, which="live"):
        """The instance that the record names ("" for none); `live` is the truth, also for the next boot."""
        return (read(f"{self.state}/{which}") or "").strip()

    def linked(self):
        """The instance whose socket the web server connects to, "" for none."""
        try:
            return os.readlink(self.link).split("/")[0]
        except OSError:
            return ""

    def instances(self):
        """Every instance that has left a file, a link or a running unit on this host."""
        found = set()
        for pattern in (self.unit_file("*"), self.wants("*")):
            found.update(os.path.basename(path)[len(self.prefix) : -len(".service")] for path in glob.glob(pattern))
        found.update(os.path.basename(path)[:-3] for path in glob.glob(self.config_file("*")))
        listed = systemctl("list-units", "--all", "--plain", "--no-legend", self.unit("*"))[1]
        for line in listed.splitlines():
            unit = line.split(" ", 1)[0]
            if unit.startswith(self.prefix):
                found.add(unit[len(self.prefix) : -len(".service")])
        return found


def fingerprint(parts):
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def file_hash(path):
    try:
        with open(path, "rb") as handle:
            return hashlib.sha256(handle.read()).hexdigest()
    except OSError:
        return None


def queue_length(path):
    """Connections that wait to be accepted at a listening unix socket; None when the kernel does not tell.

    Asked of sock_diag(7): unix_diag_req with the listening state, name and queue length wanted.
    """
    listening, name_and_queue = 1 << 10, 0x01 | 0x10
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, listening, 0, name_and_queue, 0xFFFFFFFF, 0xFFFFFFFF)
    header = struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0)
    lengths = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as link:
            link.settimeout(2)
            link.send(header + request)
            while True:
                data = link.recv(1 << 16)
                while len(data) >= 16:
                    size, kind = struct.unpack_from("=IH", data)
                    if kind == 3:  # the end of the list
                        return sum(lengths)
                    if kind == 2 or size < 16:
                        return None
                    attributes = read_attributes(data[32:size])
                    if attributes.get(0, b"").rstrip(b"\0") == path.encode() and 4 in attributes:
                        lengths.append(struct.unpack_from("=I", attributes[4])[0])
                    data = data[(size + 3) & ~3 :]
    except OSError:
        return None


def read_attributes(data):
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            break
        found[kind] = data[4:size]
        data = data[(size + 3) & ~3 :]
    return found


def ask(path, page, headers, timeout):
    """GET a page through a unix socket; returns (status, body). Raises OSError or HTTPException."""
    connection = UnixConnection(path, timeout)
    try:
        connection.request("GET", page, headers={"Connection": "close", **{k: str(v) for k, v in headers.items()}})
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20).decode("utf-8", "replace")
    finally:
        connection.close()


class Switch:
    """One run of the module for one site."""

    def __init__(self, site, wanted):
        self.site = site
        self.wanted = wanted
        self.instance = "%s-%s" % (wanted["release"], self.fingerprint())
        self.steps = []
        self.seconds = {}
        self.began = time.time()

    def fingerprint(self):
        contents = {path: file_hash(path) for path in self.wanted["environment_files"]}
        return fingerprint([self.wanted["unit"], self.wanted["config"], contents])

    def files(self):
        return {
            self.site.config_file(self.instance): self.wanted["config"].replace("@INSTANCE@", self.instance),
            self.site.unit_file(self.instance): self.wanted["unit"].replace("@INSTANCE@", self.instance),
        }

    def missing(self):
        """The sentence about what is not there yet, "" when the instance can be started."""
        absent = [p for p in self.wanted["required_paths"] + self.wanted["environment_files"] if not os.path.exists(p)]
        if absent:
            return "%s is not there. Build the release on this host first, or correct the path." % ", ".join(absent)
        try:
            if pwd.getpwnam(self.wanted["user"]).pw_uid == 0:
                return "the service would run as root. Set gunicorn_user to a user of its own."
        except KeyError:
            return "the user %s does not exist. Create it first, or set gunicorn_user." % self.wanted["user"]
        return ""

    def timed(self, word, action, *arguments):
        start = time.monotonic()
        try:
            return action(*arguments)
        finally:
            self.seconds[word] = round(time.monotonic() - start, 2)

    def outstanding(self):
        """What is not as it should be, as short words, and the state of the wanted unit."""
        now = state_of(self.site.unit(self.instance))
        found = []
        if any(read(path) != text for path, text in self.files().items()):
            found.append("write")
        if self.wanted["reload"] or now.get("NeedDaemonReload") == "yes":
            found.append("reload")
        if now.get("ActiveState") != "active":
            found.append("start")
        if self.site.recorded() != self.instance:
            found.append("record")
        if self.site.linked() != self.instance:
            found.append("link")
        if not os.path.islink(self.site.wants(self.instance)):
            found.append("enable")
        if self.site.instances() - {self.instance}:
            found.append("remove")
        return found

    def run(self):
        """Bring the instance live; returns whether anything changed."""
        todo = self.outstanding()
        if not todo:
            return False
        before = self.site.recorded()
        serving = {before, self.site.linked()} - {""}
        ours = self.instance in serving
        self.remove(self.site.instances() - serving - {self.instance})
        if "write" in todo:
            for path, text in self.files().items():
                write(path, text)
            self.steps.append("write")
        if "write" in todo or "reload" in todo:
            systemctl("daemon-reload")
        try:
            if not (ours and "start" not in todo):
                self.timed("start", self.start)
            self.timed("health", self.healthy)
            self.timed("warm", self.warm)
        except Unhealthy as reason:
            self.give_up(str(reason), ours)
        self.enable()
        if before != self.instance:
            # First what the next boot goes by, in one rename; from here on a rerun finishes the switch.
            if before:
                write(f"{self.site.state}/previous", before + "\n")
            write(f"{self.site.state}/live", self.instance + "\n")
        self.flip()
        for instance in sorted(serving - {self.instance}):
            self.timed("drain", self.drain, instance)
        self.timed("stop", self.remove, self.site.instances() - {self.instance})
        return True

    def start(self):
        """A fresh start, so that the health gate judges what the next boot will run."""
        unit = self.site.unit(self.instance)
        self.stop(self.instance)
        systemctl("reset-failed", "--", unit)
        code, output = systemctl("start", "--no-block", "--", unit)
        if code:
            raise Unhealthy("it could not be started: %s" % output)
        self.steps.append("start")

    def healthy(self):
        """Wait until every worker has loaded the application and the health page answers as it should."""
        health = self.wanted["health"]
        end = time.monotonic() + health["seconds"]
        last = "it did not open its socket"
        restarts = state_of(self.site.unit(self.instance)).get("NRestarts")
        while True:
            now = state_of(self.site.unit(self.instance))
            dead = now.get("ActiveState") in ("failed", "inactive") or now.get("SubState") == "auto-restart"
            if dead or now.get("NRestarts") != restarts:
                raise Unhealthy("it stopped by itself (%s)" % now.get("Result"))
            if now.get("ActiveState") == "active":
                last = self.judge(max(0.5, min(10.0, end - time.monotonic())))
                if not last:
                    return
            if time.monotonic() > end:
                raise Unhealthy("it was not healthy after %s s: %s" % (health["seconds"], last))
            time.sleep(0.1)

    def judge(self, timeout):
        """Ask the health page once; returns what is wrong, "" when nothing is."""
        health, instance = self.wanted["health"], self.instance
        try:
            status, body = ask(self.site.socket(instance), health["path"], health["headers"], timeout)
        except (OSError, http.client.HTTPException) as error:
            return "%s did not answer (%s)" % (health["path"], error or type(error).__name__)
        if status == 404 != health["status"]:
            return (
                "%s answered 404: the project has no such page. Name one that it has as the health path"
                % health["path"]
            )
        if status != health["status"]:
            return "%s answered %s instead of %s: %s" % (health["path"], status, health["status"], body[:300])
        if health["contains"] not in body:
            return "%s answered without %r: %s" % (health["path"], health["contains"], body[:300])
        loaded = len(glob.glob(f"{self.site.folder(instance)}/worker-*"))
        if loaded < self.wanted["workers"]:
            return "%s of %s workers have loaded the application" % (loaded, self.wanted["workers"])
        return ""

    def warm(self):
        for page in self.wanted["warm_paths"] * self.wanted["workers"]:
            try:
                status = ask(self.site.socket(self.instance), page, self.wanted["health"]["headers"], 30)[0]
            except (OSError, http.client.HTTPException) as error:
                raise Unhealthy("the warm path %s did not answer (%s)" % (page, error))
            if status >= 500:
                raise Unhealthy("the warm path %s answered %s" % (page, status))

    def give_up(self, reason, serving):
        unit = self.site.unit(self.instance)
        lines = journal(unit, self.began, JOURNAL_LINES)
        if not serving:
            self.remove({self.instance})
        live = self.site.recorded()
        if serving:
            after = "It is the live release, so it was left as it is."
        elif live:
            after = "%s keeps serving, and what was started has been removed." % live
        else:
            after = "It was removed again; nothing is live yet."
        message = "gunicorn: %s did not go live: %s.\n%s\nIts last log lines:\n%s" % (
            self.instance, reason.rstrip(". \n"), after, lines or "(none)",
        )  # fmt: skip
        raise Refused(masked(message, self.wanted["environment_files"]))

    def enable(self):
        if os.path.islink(self.site.wants(self.instance)):
            return
        code, output = systemctl("enable", "--", self.site.unit(self.instance))
        if code:
            self.give_up("it could not be enabled: %s" % output, self.site.recorded() == self.instance)
        self.steps.append("enable")

    def flip(self):
        """Point the live link at the instance; a rename, so that every connection finds the one or the other."""
        if self.site.linked() == self.instance:
            return
        temporary = f"{self.site.run}/.live.sock.new"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(f"{self.instance}/web.sock", temporary)
        os.replace(temporary, self.site.link)
        self.steps.append("link")

    def drain(self, instance):
        """Wait until nothing queues at the old socket any more and what was just accepted has been read."""
        end = time.monotonic() + self.wanted["drain_seconds"]
        quiet = time.monotonic()
        while time.monotonic() < end:
            if queue_length(self.site.socket(instance)):
                quiet = time.monotonic()
            elif time.monotonic() - quiet >= SETTLED_SECONDS:
                return
            time.sleep(0.05)

    def stop(self, instance):
        unit = self.site.unit(instance)
        systemctl("stop", "--", unit, timeout=self.wanted["stop_seconds"])
        if state_of(unit).get("ActiveState") not in ("inactive", "failed"):
            systemctl("kill", "--signal=SIGKILL", "--", unit)
            systemctl("stop", "--", unit)

    def remove(self, instances):
        """Stop instances and leave nothing of them; what they still serve is finished first."""
        for instance in sorted(instances):
            unit = self.site.unit(instance)
            self.stop(instance)
            for path in (self.site.wants(instance), self.site.unit_file(instance), self.site.config_file(instance)):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    continue
            shutil.rmtree(self.site.folder(instance), ignore_errors=True)
            systemctl("reset-failed", "--", unit)
            self.steps.append("remove %s" % instance)
        if instances:
            systemctl("daemon-reload")

    def difference(self, before):
        """Per file what a switch from another instance changes."""
        old = {}
        if before:
            old = {"config": read(self.site.config_file(before)), "unit": read(self.site.unit_file(before))}
        paths = dict(zip(("config", "unit"), self.files(), strict=True))
        return [
            {
                "before_header": before or "nothing",
                "after_header": path,
                "before": old.get(kind) or "",
                "after": self.files()[path],
            }
            for kind, path in paths.items()
        ]


def status(site):
    live = site.recorded()
    now = state_of(site.unit(live)) if live else {}
    return {
        "instance": live,
        "release": live.rpartition("-")[0],
        "socket": site.link,
        "previous": site.recorded("previous"),
        "linked": site.linked(),
        "active": now.get("ActiveState", "inactive"),
        "others": sorted(site.instances() - {live}),
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["live", "status"], "default": "live"},
            "release": {"type": "str"},
            "unit": {"type": "str"},
            "config": {"type": "str"},
            "environment_files": {"type": "list", "elements": "str", "default": []},
            "required_paths": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str"},
            "workers": {"type": "int", "default": 1},
            "health": {
                "type": "dict",
                "options": {
                    "path": {"type": "str", "required": True},
                    "headers": {"type": "dict", "default": {}},
                    "status": {"type": "int", "default": 200},
                    "contains": {"type": "str", "default": ""},
                    "seconds": {"type": "int", "default": 60},
                },
            },
            "warm_paths": {"type": "list", "elements": "str", "default": []},
            "drain_seconds": {"type": "int", "default": 30},
            "stop_seconds": {"type": "int", "default": 60},
            "reload": {"type": "bool", "default": False},
        },
        required_if=[("state", "live", ("release", "unit", "config", "user", "health"))],
        supports_check_mode=True,
        # The unit's text carries the environment: it does not belong in the journal.
        no_log=True,
    )
    site = Site(module.params["name"])
    if module.params["state"] == "status":
        module.exit_json(changed=False, live=status(site))
    switch = Switch(site, module.params)
    missing = switch.missing()
    before = site.recorded()
    difference = [] if before == switch.instance else switch.difference(before)
    if module.check_mode:
        live = {
            "instance": switch.instance,
            "release": module.params["release"],
            "socket": site.link,
            "previous": before,
        }
        module.exit_json(changed=bool(missing or switch.outstanding()), live=live, diff=difference)
    if missing:
        module.fail_json(msg="gunicorn: %s" % missing)
    try:
        held = lock(f"{site.state}/lock")
        if held is None:
            raise Refused(
                "gunicorn: another run is switching this site on this host. This one did not begin. Run it again."
            )
        changed = switch.run()
        held.close()
    except Refused as refusal:
        module.fail_json(msg=str(refusal), steps=switch.steps, seconds=switch.seconds)
    module.exit_json(
        changed=changed,
        live=status(site),
        steps=switch.steps,
        seconds=switch.seconds,
        diff=difference if changed else [],
    )


if __name__ == "__main__":
    main()
