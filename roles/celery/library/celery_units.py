#!/usr/bin/python
"""Bring the workers, beat and Flower of a Celery application to a release, without losing a task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_units
short_description: Run a release of a Celery application
description:
  - The units lie ready under C(/etc/celery-<name>). Each that runs carries a fingerprint of its unit, its release and
    the contents of the environment files; a unit that runs with another one is restarted, and no other.
  - Before anything is replaced, the release must prove that it loads with its own environment.
  - Workers stop warm and all at once, and must answer afterwards.
options:
  name:
    description: The site's name; units are called C(celery-<name>@<worker>.service).
    type: str
    required: true
  state:
    description:
      - C(running) brings the units to the release; C(status) only tells what runs.
      - C(queues) asks the broker, with the release that runs here, how much waits in each queue.
    type: str
    choices: [running, status, queues]
    default: running
  app:
    description: The application as Celery names it.
    type: str
  release:
    description: Id of the release.
    type: str
  directory:
    description: The release's code.
    type: str
  venv:
    description: The release's Python environment.
    type: str
  user:
    description: The user that the units run as; it must exist and must not be root.
    type: str
  group:
    description: Its group.
    type: str
  environment_files:
    description: Files whose contents are part of the fingerprint.
    type: list
    elements: str
    default: []
  required_paths:
    description: Paths that must be there before anything is started.
    type: list
    elements: str
    default: []
  workers:
    description: Names of the workers of this host.
    type: list
    elements: str
    default: []
  asked:
    description: Those of them that must answer after their start.
    type: list
    elements: str
    default: []
  beat:
    description: Whether beat runs on this host.
    type: bool
    default: false
  flower:
    description: Whether Flower runs on this host.
    type: bool
    default: false
  health:
    description: Whether the workers are watched.
    type: bool
    default: true
  longest_seconds:
    description: The longest time limit of a worker's own, which the application's visibility timeout must exceed.
    type: int
    default: 0
  default_limits:
    description:
      - The time limit and the soft one, in seconds, for workers that have none of their own; none when all have.
      - They hold where the application sets none. What it sets must be below the visibility timeout too.
    type: list
    elements: int
    default: []
  stop_seconds:
    description: How long a worker may take to stop.
    type: int
    default: 180
  start_seconds:
    description: How long a worker may take to answer after its start.
    type: int
    default: 60
  queues:
    description:
      - The site's queues, by name. A release that sends tasks to others is refused, unless there are none.
      - With C(queues), those to tell of; what each holds may have C(max_wait), seconds over which it warns.
    type: dict
    default: {}
  files_changed:
    description: Whether what lies ready has changed, or would in check mode.
    type: bool
    default: false
author: Stepladder
"""

import glob
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.stepladder_units import Refused, journal, lock, masked, read, run, show, systemctl, write

UNITS = "/etc/systemd/system"
MARK = "@GENERATION@"
MEMORY = re.compile(r"^MemoryMax=.*$", re.M)
PROPERTIES = "Id,ActiveState,SubState,MainPID,NeedDaemonReload,UnitFileState,StatusText,Job,Result,MemoryMax"
OLDEST_CELERY = (5, 5)
# Since then a task takes the application's time limit for its own, and every message carries it.
LIMIT_IN_MESSAGES = (5, 7)
# What kombu assumes where the application sets no visibility timeout; other transports have none.
VISIBILITY_SECONDS = {"redis": 3600, "sqs": 1800}
# RabbitMQ's consumer_timeout, unless its configuration says otherwise.
RABBITMQ_SECONDS = 1800
LOAD_SECONDS = 60
LIMITS = '# Of the role\'s time limits, what the application leaves open.\nCELERY_LIMITS="%s"\n'


def states_of(units):
    """systemd's properties of units, by name."""
    return show(units, PROPERTIES)


def environ(pid):
    """The environment that a process was started with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as handle:
            pairs = handle.read().decode("utf-8", "replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def left_open(answer, limits):
    """Celery's options for the role's limits (hard, soft), where the application sets none: options win over settings."""
    if not limits:
        return ""
    hard, soft = limits
    own_hard, own_soft = answer["time_limit"], answer["soft_time_limit"]
    if own_hard is not None or (own_soft is not None and own_soft >= hard):
        return ""
    return "--time-limit %d" % hard + (" --soft-time-limit %d" % soft if own_soft is None else "")


def longest_of(answer, own, limits):
    """How long a task may run, in seconds: by its own limit, a worker's own, the application's, or the role's."""
    applications = max(answer["time_limit"] or 0, answer["soft_time_limit"] or 0)
    return max(own, answer["longest_task"], applications or (limits[0] if limits else 0))


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no answer"


class Site:
    """Where the units of a site are: lying ready, and in use."""

    def __init__(self, name, units=UNITS, etc="/etc", lib="/usr/local/lib"):
        self.name, self.units = name, units
        self.ready = f"{etc}/celery-{name}"
        self.lib = f"{lib}/celery-{name}"
        self.template = f"celery-{name}@.service"
        self.beat, self.flower = f"celery-beat-{name}.service", f"celery-flower-{name}.service"
        self.health, self.timer = f"celery-health-{name}.service", f"celery-health-{name}.timer"

    def worker(self, name):
        return f"celery-{self.name}@{name}.service"

    def worker_of(self, unit):
        return unit[len(self.template) - len(".service") : -len(".service")]

    def drop_in(self, unit):
        return f"{self.units}/{unit}.d/worker.conf"

    def node(self, worker):
        return f"{self.name}.{worker}@{socket.gethostname()}"

    def known_workers(self):
        """Units of workers that have left a file, a link or a process on this host."""
        found = {os.path.basename(path)[: -len(".d")] for path in glob.glob(f"{self.units}/{self.worker('*')}.d")}
        found |= {os.path.basename(p) for p in glob.glob(f"{self.units}/multi-user.target.wants/{self.worker('*')}")}
        listed = systemctl("list-units", "--all", "--plain", "--no-legend", self.worker("*"))[1]
        found |= {line.split(" ", 1)[0] for line in listed.splitlines() if line.startswith(f"celery-{self.name}@")}
        return found - {self.template}

    def enabled(self, unit):
        return bool(glob.glob(f"{self.units}/*.wants/{unit}"))


class Fleet:
    """One run of the module for one site on this host."""

    def __init__(self, site, wanted):
        self.site, self.wanted = site, wanted
        self.steps, self.seconds, self.warnings = [], {}, []
        self.workers = [site.worker(name) for name in wanted["workers"]]
        self.others = [site.beat] * wanted["beat"] + [site.flower] * wanted["flower"]
        self.watch = [site.timer] * wanted["health"]

    def sources(self, unit):
        """What lies ready for a unit: {path in use: text}; MARK is still in it."""
        site = self.site
        if unit in self.workers:
            names = {site.template: f"{site.units}/{site.template}", f"{unit}.conf": site.drop_in(unit)}
        elif unit == site.timer:
            names = {name: f"{site.units}/{name}" for name in (site.timer, site.health)}
        else:
            names = {unit: f"{site.units}/{unit}"}
        return {path: read(f"{site.ready}/{name}") or "" for name, path in names.items()}

    def generation(self, unit):
        """The fingerprint of all that makes a unit run as it does."""
        site = self.site
        extra = {site.beat: [f"{site.lib}/beat.py"], site.flower: [f"{site.ready}/flower.py"]}.get(unit, [])
        contents = {path: read(path) for path in self.wanted["environment_files"] + extra}
        # A memory limit takes effect when systemd reads its configuration again: no process has to restart for it.
        texts = {path: MEMORY.sub("", text) for path, text in self.sources(unit).items()}
        parts = json.dumps([texts, contents, self.wanted["release"]], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:12]

    def files(self):
        """Every file in use that the wanted units need, with its text."""
        found = {}
        for unit in self.workers + self.others + self.watch:
            for path, text in self.sources(unit).items():
                found[path] = text.replace(MARK, self.generation(unit))
        return found

    def missing(self):
        """The sentence about what is not there yet, "" when units can be started."""
        wanted = self.wanted
        absent = [p for p in wanted["required_paths"] + wanted["environment_files"] if not os.path.exists(p)]
        if absent:
            return "%s is not there. Build the release on this host first, or correct the path." % ", ".join(absent)
        try:
            if pwd.getpwnam(wanted["user"]).pw_uid == 0:
                return "the workers would run as root. Set celery_user to a user of its own."
        except KeyError:
            return "the user %s does not exist. Create it first, or set celery_user." % wanted["user"]
        return ""

    def look(self):
        """Find out what differs."""
        site = self.site
        wanted = self.workers + self.others
        self.known = site.known_workers()
        surplus = self.known - set(self.workers)
        surplus |= {
            unit
            for unit in (site.beat, site.flower, site.timer)
            if unit not in self.others + self.watch and os.path.lexists(f"{site.units}/{unit}")
        }
        self.surplus = sorted(surplus)
        self.now = states_of(wanted + self.watch)
        self.write = {path: text for path, text in self.files().items() if read(path) != text}
        self.enable = [unit for unit in wanted + self.watch if not site.enabled(unit)]
        self.restart = [unit for unit in wanted if not self.runs_as_wanted(unit)]
        rewritten = self.watch and {f"{site.units}/{name}" for name in (site.timer, site.health)} & set(self.write)
        self.rewatch = [unit for unit in self.watch if rewritten or self.now[unit].get("ActiveState") != "active"]
        self.reload = any(state.get("NeedDaemonReload") == "yes" for state in self.now.values())

    def runs_as_wanted(self, unit):
        now = self.now[unit]
        pid = now.get("MainPID", "0")
        if now.get("ActiveState") != "active" or now.get("Job", "0") not in ("", "0") or pid == "0":
            return False
        return environ(pid).get("CELERY_GENERATION") == self.generation(unit)

    def outstanding(self):
        return bool(self.surplus or self.write or self.enable or self.restart or self.rewatch or self.reload)

    def bring(self):
        """Bring everything to what is wanted; returns whether anything changed."""
        self.look()
        if not self.outstanding():
            return False
        began = time.time()
        if self.restart:
            answer = self.timed("load", self.prove)
            # First of all: a unit that starts, for whatever reason, finds the limits that belong to it.
            self.write = {**self.limits(answer), **self.write}
        for path, text in self.write.items():
            write(path, text)
            self.steps.append("write %s" % os.path.basename(path))
        if self.write or self.reload:
            systemctl("daemon-reload")
        if self.enable:
            code, output = systemctl("enable", "--", *self.enable)
            if code:
                raise Refused("%s could not be enabled: %s" % (", ".join(self.enable), output))
            self.steps.append("enable")
        self.timed("stop", self.remove)
        if self.restart:
            systemctl("reset-failed", "--", *self.restart)
            systemctl("restart", "--no-block", "--", *self.restart)
            self.timed("restart", self.settle, self.restart)
            self.steps += ["restart %s" % unit for unit in self.restart]
            self.timed("answer", self.answering, began)
        if self.rewatch:
            systemctl("restart", "--", *self.rewatch)
            self.steps.append("watch")
        return True

    def limits(self, answer):
        """The file that tells workers which of the role's limits hold, when it must be written: {path: text}."""
        path = f"{self.site.ready}/limits"
        text = LIMITS % left_open(answer, self.wanted["default_limits"])
        return {path: text} if read(path) != text else {}

    def timed(self, word, action, *arguments):
        start = time.monotonic()
        try:
            return action(*arguments)
        finally:
            self.seconds[word] = round(time.monotonic() - start, 2)

    def ask(self, *words, seconds):
        """Run ask.py as the workers would run; returns (answer, what was wrong)."""
        wanted = self.wanted
        command = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"]
        properties = {
            "User": wanted["user"], "Group": wanted["group"], "WorkingDirectory": wanted["directory"],
            "RuntimeMaxSec": str(int(seconds)), "NoNewPrivileges": "yes", "ProtectSystem": "strict",
            "PrivateTmp": "yes", "ProtectHome": "yes", "Environment": "PYTHONDONTWRITEBYTECODE=1",
        }  # fmt: skip
        for key, value in properties.items():
            command += ["-p", f"{key}={value}"]
        for path in wanted["environment_files"]:
            command += ["-p", f"EnvironmentFile={path}"]
        command += [f"{wanted['venv']}/bin/python", f"{self.site.lib}/ask.py", wanted["app"], *words]
        code, output, error = run(*command, timeout=seconds + 15)
        try:
            return json.loads(last_line(output)), ""
        except ValueError:
            words = masked(error or output, wanted["environment_files"])
            return None, words or "it ended with code %s" % code

    def prove(self):
        """The release must load, and fit to what the role promises; raises Refused."""
        release = self.wanted["release"]
        after = "Nothing that runs was changed."
        answer, wrong = self.ask("load", seconds=LOAD_SECONDS)
        if answer is None:
            raise Refused(
                "the application %s of release %s does not load: %s. %s Its last words:\n%s"
                % (self.wanted["app"], release, last_line(wrong), after, "\n".join(wrong.splitlines()[-20:]))
            )
        version = tuple(int(part) for part in re.findall(r"\d+", answer["celery"])[:2])
        if version < OLDEST_CELERY:
            raise Refused(
                "release %s has Celery %s, and only 5.5 and later put running tasks back when they must stop. %s "
                "Upgrade Celery in its environment." % (release, answer["celery"], after)
            )
        if self.wanted["flower"] and not answer["flower"]:
            raise Refused(
                "celery_flower is on, and Flower is not in %s. %s Install flower there, or switch it off."
                % (self.wanted["venv"], after)
            )
        astray = sorted(set(answer["sent_to"]) - set(self.wanted["queues"])) if self.wanted["queues"] else []
        if astray:
            raise Refused(
                "release %s sends tasks to %s, and celery_queues has only %s, so nobody may consume them. %s Add the queue "
                "to celery_queues and to a worker, or correct the application's routes."
                % (release, ", ".join(astray), ", ".join(sorted(self.wanted["queues"])), after)
            )
        visibility = answer["visibility"] or VISIBILITY_SECONDS.get(answer["transport"])
        longest = longest_of(answer, self.wanted["longest_seconds"], self.wanted["default_limits"])
        if answer["transport"] in VISIBILITY_SECONDS and visibility <= longest:
            raise Refused(
                "a task may run for %s s, and after %s s (visibility_timeout of the application's "
                "broker_transport_options) the broker gives it to a second worker as well. %s Lower the time limit, or "
                "raise the visibility timeout in the settings." % (longest, visibility, after)
            )
        if self.wanted["longest_seconds"] and answer["time_limit"] is not None and version >= LIMIT_IN_MESSAGES:
            self.warnings.append(
                "celery: the application sets task_time_limit to %s s, which this Celery sends with every task, so the time "
                "limits in celery_workers do not hold. Take it out of the application and set celery_task_time_limit, or "
                "give the tasks limits of their own." % answer["time_limit"]
            )
        if answer["transport"] == "amqp" and longest >= RABBITMQ_SECONDS:
            self.warnings.append(
                "celery: a task may run for %d s. RabbitMQ takes a worker for dead that has held a task for longer than its "
                "consumer_timeout (%d s unless it is configured), and gives the task to another. Set consumer_timeout there "
                "above the longest time limit." % (longest, RABBITMQ_SECONDS)
            )
        return answer

    def remove(self):
        """Stop what is no longer wanted, warm, and leave nothing of it."""
        if not self.surplus:
            return
        site = self.site
        if site.timer in self.surplus:
            systemctl("stop", "--", site.timer)
        systemctl("stop", "--no-block", "--", *self.surplus)
        self.settle(self.surplus, stopping=True)
        systemctl("disable", "--", *self.surplus)
        paths = [f"{site.units}/{unit}" for unit in self.surplus]
        if site.timer in self.surplus:
            paths.append(f"{site.units}/{site.health}")
        for unit in self.surplus:
            if unit in self.known:
                shutil.rmtree(f"{site.units}/{unit}.d", ignore_errors=True)
                paths.append(f"{site.ready}/{unit}.conf")
        if not self.workers:
            paths.append(f"{site.units}/{site.template}")
        for path in paths:
            if os.path.lexists(path):
                os.unlink(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", "--", *self.surplus)
        self.steps += ["remove %s" % unit for unit in self.surplus]

    def settle(self, units, stopping=False):
        """Wait until systemd has done what it was told with every unit."""
        end = time.monotonic() + self.wanted["stop_seconds"] + 30
        while True:
            states = states_of(units)
            busy = [unit for unit, now in states.items() if now.get("Job", "") not in ("", "0")]
            if stopping:
                busy += [u for u, now in states.items() if now.get("ActiveState") not in ("inactive", "failed", None)]
            if not busy:
                return
            if time.monotonic() > end:
                raise Refused(
                    "%s did not stop within %s s. See `journalctl -u %s` on the host, and run this again."
                    % (", ".join(busy), self.wanted["stop_seconds"] + 30, busy[0])
                )
            time.sleep(0.2)

    def answering(self, began):
        """What was restarted must run, and workers must answer; without a broker only the former can be said."""
        site, seconds = self.site, self.wanted["start_seconds"]
        started = [unit for unit in self.restart if unit in self.workers]
        nodes = {site.node(site.worker_of(unit)): unit for unit in started
                 if site.worker_of(unit) in self.wanted["asked"]}  # fmt: skip
        broker = ""
        if nodes:
            answer, wrong = self.ask("ping", str(seconds), *nodes, seconds=seconds + LOAD_SECONDS)
            broker = wrong or answer["broker"]
            silent = [] if broker else sorted(unit for node, unit in nodes.items() if node not in answer["answered"])
            if silent:
                self.give_up(silent[0], "does not answer after %s s" % seconds, began)
        if broker:
            self.warnings.append(
                "celery: the workers of %s were started, but the broker does not answer, so nobody knows whether they "
                "work: %s" % (site.name, last_line(masked(broker, self.wanted["environment_files"])))
            )
        else:
            time.sleep(0 if nodes else 2)
        for unit, now in states_of(self.restart).items():
            if now.get("ActiveState") != "active" and not (unit == site.beat and now.get("SubState") == "start"):
                self.give_up(unit, "does not run (%s)" % now.get("SubState"), began)

    def give_up(self, unit, what, began):
        lines = journal(unit, began, 40)
        raise Refused(
            "%s of release %s %s. It is tried again and again, and waiting tasks stay in their queues. "
            "Correct the release, or run the role with the release before. Its last lines:\n%s"
            % (unit, self.wanted["release"], what, masked(lines, self.wanted["environment_files"]) or "(none)")
        )

    def difference(self):
        return [
            {"before_header": path, "after_header": path, "before": read(path) or "", "after": text}
            for path, text in sorted(self.write.items())
        ]

    def beat_waits(self):
        """A warning when another host's beat sends the ticks."""
        status = states_of([self.site.beat])[self.site.beat].get("StatusText", "") if self.wanted["beat"] else ""
        if status.startswith("waits: "):
            self.warnings.append(
                "celery: beat of %s does nothing on this host, it %s. Set celery_beat on one host only, and run the "
                "role on the other one." % (self.site.name, status)
            )


def status(site):
    """What runs of a site on this host."""
    units = sorted(site.known_workers())
    states = states_of([*units, site.beat, site.flower])

    def one(unit):
        now = states[unit]
        known = environ(now.get("MainPID", "0")) if now.get("MainPID", "0") != "0" else {}
        return {
            "active": now.get("ActiveState", "inactive"),
            "release": known.get("CELERY_RELEASE", ""),
            "says": now.get("StatusText", ""),
        }

    workers = {site.worker_of(unit): one(unit) for unit in units}
    releases = sorted({worker["release"] for worker in workers.values() if worker["release"]})
    return {
        "release": releases[0] if len(releases) == 1 else "",
        "releases": releases,
        "workers": workers,
        "beat": one(site.beat),
        "flower": one(site.flower),
    }


def in_use(site):
    """How the workers of this host run, by their units. Raises Refused when there are none."""
    template = read(f"{site.units}/{site.template}") or ""
    drop_ins = "".join(read(path) or "" for path in sorted(glob.glob(site.drop_in(site.worker("*")))))
    start = re.search(r"(?m)^ExecStart=(\S+)/bin/python -m celery -A (\S+) worker", drop_ins)
    if not start:
        raise Refused("no worker of %s runs on this host, so nobody can be asked. Run the role first." % site.name)
    lines = [line.split("=", 1) for line in template.splitlines() if "=" in line]
    once = dict(lines)
    return {
        "venv": start[1], "app": start[2], "directory": once["WorkingDirectory"],
        "user": once["User"], "group": once["Group"],
        "environment_files": [value for key, value in lines if key == "EnvironmentFile"],
    }  # fmt: skip


def late(rows, limits):
    """A sentence per queue in which a task has waited for too long, or that nobody consumes."""
    words = []
    for row in rows:
        limit = (limits.get(row["queue"]) or {}).get("max_wait")
        if limit is not None and row["oldest"] is not None and row["oldest"] > float(limit):
            words.append(
                "celery: the oldest task in the queue %s has waited for %.0f s, more than its max_wait of %s s. Give it "
                "more workers, or see what holds them up." % (row["queue"], row["oldest"], limit)
            )
        if row["length"] and not row["consumers"]:
            words.append(
                "celery: nobody consumes the queue %s, in which tasks wait: %d." % (row["queue"], row["length"])
            )
    return words


def queues(site, limits):
    """What waits in each queue. Raises Refused when the broker does not say."""
    found = in_use(site)
    asker = Fleet(site, {"workers": [], "beat": False, "flower": False, "health": False, **found})
    rows, wrong = asker.ask("queues", *sorted(limits), seconds=LOAD_SECONDS)
    if rows is None:
        raise Refused("the broker of %s could not be asked: %s" % (site.name, last_line(wrong)))
    return rows


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["running", "status", "queues"], "default": "running"},
            "app": {"type": "str"},
            "release": {"type": "str"},
            "directory": {"type": "str"},
            "venv": {"type": "str"},
            "user": {"type": "str"},
            "group": {"type": "str"},
            "environment_files": {"type": "list", "elements": "str", "default": []},
            "required_paths": {"type": "list", "elements": "str", "default": []},
            "workers": {"type": "list", "elements": "str", "default": []},
            "asked": {"type": "list", "elements": "str", "default": []},
            "beat": {"type": "bool", "default": False},
            "flower": {"type": "bool", "default": False},
            "health": {"type": "bool", "default": True},
            "longest_seconds": {"type": "int", "default": 0},
            "default_limits": {"type": "list", "elements": "int", "default": []},
            "stop_seconds": {"type": "int", "default": 180},
            "start_seconds": {"type": "int", "default": 60},
            "queues": {"type": "dict", "default": {}},
            "files_changed": {"type": "bool", "default": False},
        },
        required_if=[("state", "running", ("app", "release", "directory", "venv", "user", "group"))],
        supports_check_mode=True,
    )
    site = Site(module.params["name"])
    if module.params["state"] == "status":
        module.exit_json(changed=False, live=status(site))
    if module.params["state"] == "queues":
        try:
            rows = queues(site, module.params["queues"])
        except Refused as refusal:
            module.fail_json(msg="celery: %s" % refusal)
        for words in late(rows, module.params["queues"]):
            module.warn(words)
        module.exit_json(changed=False, queues=rows)
    fleet = Fleet(site, module.params)
    missing = fleet.missing()
    if module.check_mode:
        fleet.look()
        changed = bool(missing or module.params["files_changed"] or fleet.outstanding())
        module.exit_json(changed=changed, live={**status(site), "release": module.params["release"]})
    if missing:
        module.fail_json(msg="celery: %s" % missing)
    difference = []
    try:
        held = lock(f"/run/celery-{site.name}.lock")
        if held is None:
            raise Refused("another run works at this site on this host. This one did not begin. Run it again.")
        fleet.look()
        difference = fleet.difference()
        changed = fleet.bring()
        fleet.beat_waits()
        held.close()
    except Refused as refusal:
        module.fail_json(msg="celery: %s" % refusal, steps=fleet.steps, seconds=fleet.seconds)
    for warning in fleet.warnings:
        module.warn(warning)
    module.exit_json(
        changed=changed, live=status(site), steps=fleet.steps, seconds=fleet.seconds, diff=difference if changed else []
    )


if __name__ == "__main__":
    main()
