#!/usr/bin/python
"""The host's part of guarded_files: compare, change with a timer that puts everything back, confirm, put back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guarded_files
short_description: Change files that can cut the controller off, with a way back
description:
  - The action plugin of the same name calls this module once per step.
  - See roles/_common/README.md for the task's arguments.
options:
  payload:
    description: What to do, packed by the action plugin (base64 of JSON).
    type: str
    required: true
author: Stepladder
"""

import base64
import json
import os
import shlex
import shutil
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule

GUARDS = "/var/lib/stepladder/guard"
UNITS = "/etc/systemd/system"
# Before everything that reads the files: sysinit.target comes before every ordinary unit, {before} names the others.
BOOT_UNIT = """# Written by Ansible (guarded_files); it is removed as soon as the change is confirmed or put back.
[Unit]
Description=Put back the files of {name}, whose change nobody confirmed before the reboot
DefaultDependencies=no
RequiresMountsFor={guards}
After=local-fs.target
Before=sysinit.target network-pre.target {before}
ConditionPathExists={script}

[Service]
Type=oneshot
ExecStart=/bin/sh {script} boot

[Install]
WantedBy=sysinit.target
"""


class Refused(Exception):
    """A configuration that must not take effect; its text is the sentence for the operator."""


def run(command, folder=None):
    """Run a shell line; returns (exit code, output)."""
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def read(path):
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path, content, mode):
    """Put content at path in one step."""
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".stepladder~", dir=os.path.dirname(path))
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.chmod(temporary, mode)
    os.replace(temporary, path)


class Guard:
    """One guarded set of files on this host."""

    def __init__(self, payload):
        self.payload = payload
        self.name = payload["name"]
        self.folder = os.path.join(GUARDS, self.name)
        self.record = self.folder + ".loaded"
        self.unit = "stepladder-guard-" + self.name
        # systemd-run wants the other name for itself.
        boot = self.unit + "-boot.service"
        self.boot_unit = os.path.join(UNITS, boot)
        self.boot_link = os.path.join(UNITS, "sysinit.target.wants", boot)

    def content(self, item):
        return None if item["content"] is None else item["content"].encode("utf-8")

    def changing(self):
        """The files whose content or mode is not what it should be."""
        found = []
        for item in self.payload["files"]:
            now, wanted = read(item["dest"]), self.content(item)
            mode = None if now is None else os.stat(item["dest"]).st_mode & 0o7777
            if now != wanted or (wanted is not None and mode != int(item["mode"], 8)):
                found.append(item)
        return found

    def loaded(self):
        """What is in effect now, in its program's words; empty where nothing is."""
        if not self.payload["loaded"]:
            return ""
        code, output = run(self.payload["loaded"])
        return "" if code else output

    def pending(self):
        return os.path.isdir(self.folder)

    def compare(self):
        changing = self.changing()
        for item in changing:
            self.validate(item)
        diffs = [
            {
                "before_header": item["dest"],
                "after_header": item["dest"],
                "before": (read(item["dest"]) or b"").decode("utf-8", "replace"),
                "after": item["content"] or "",
            }
            for item in changing
        ]
        before, recorded = self.loaded(), (read(self.record) or b"").decode("utf-8", "replace")
        if not changing and before != recorded:
            what = "in effect (%s)" % self.payload["loaded"]
            diffs.append(
                {"before_header": what, "after_header": what, "before": before + "\n", "after": recorded + "\n"}
            )
        return {
            "changed": bool(diffs) or self.pending(),
            "changed_files": [item["dest"] for item in changing],
            "diff": diffs,
        }

    def validate(self, item):
        command = item["validate"]
        if not command or item["content"] is None or not shutil.which(shlex.split(command)[0]):
            return
        handle, path = tempfile.mkstemp(suffix=".stepladder~")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(self.content(item))
            code, output = run(command.replace("%s", shlex.quote(path)))
        finally:
            os.unlink(path)
        if code:
            raise Refused(
                "the new %s was refused by `%s`: %s. The old files stay."
                % (item["dest"], command, output or "no words")
            )

    def apply(self):
        if self.pending():
            # A run that was cut short left an unconfirmed change; start from what was known to work.
            self.put_back()
        self.save()
        if self.payload["seconds"]:
            self.arm()
        try:
            for item in self.payload["files"]:
                self.place(item)
            self.judge()
            code, output = run(self.payload["apply"])
            if code:
                raise Refused("`%s` failed: %s. Everything was put back as it was." % (self.payload["apply"], output))
        except BaseException:
            self.put_back()
            raise
        if not self.payload["seconds"]:
            self.confirm()
        return {"changed": True}

    def save(self):
        """Keep the old files and a script that puts them back, for the timer and for us."""
        for stale in (".new", ".back"):
            shutil.rmtree(self.folder + stale, ignore_errors=True)
        # Under another name until it is whole: what is found under its own name can always be put back.
        folder = self.folder + ".new"
        os.makedirs(folder, mode=0o700)
        lines = ["#!/bin/sh", "# Puts the old configuration back, unless it was confirmed in time.",
                 "mv %s %s 2>/dev/null || exit 0" % (shlex.quote(self.folder), shlex.quote(self.folder + ".back")),
                 "cd %s || exit 1" % shlex.quote(self.folder + ".back")]  # fmt: skip
        for number, item in enumerate(self.payload["files"]):
            dest = shlex.quote(item["dest"])
            if os.path.exists(item["dest"]):
                shutil.copy2(item["dest"], os.path.join(folder, str(number)))
                lines.append("cp -p %d %s.stepladder~ && mv %s.stepladder~ %s" % (number, dest, dest, dest))
            else:
                lines.append("rm -f %s" % dest)
        if self.payload["snapshot"]:
            code, output = run(self.payload["snapshot"], folder)
            if code:
                raise Refused("`%s` failed: %s. The old files stay." % (self.payload["snapshot"], output or "no words"))
        # While the host boots nothing has read the files yet, and a service that waits for this one cannot be reloaded.
        lines += ['if [ "$1" = boot ]; then systemctl daemon-reload; else', self.payload["restore"] or ":", "fi"]
        lines += ["code=$?", "cd /", "rm -rf %s" % shlex.quote(self.folder + ".back"),
                  "rm -f %s %s" % (shlex.quote(self.boot_link), shlex.quote(self.boot_unit)), "exit $code", ""]  # fmt: skip
        write(os.path.join(folder, "put-back.sh"), "\n".join(lines).encode(), 0o700)
        os.rename(folder, self.folder)

    def arm(self):
        self.arm_boot()
        run("systemctl reset-failed %s.service %s.timer" % (self.unit, self.unit))
        code, output = run(
            "systemd-run --quiet --unit=%s --on-active=%d --timer-property=AccuracySec=1s /bin/sh %s/put-back.sh"
            % (self.unit, self.payload["seconds"], self.folder)
        )
        if code:
            self.disarm_boot()
            shutil.rmtree(self.folder)
            raise Refused(
                "no timer could be set that would put the old configuration back: %s. The old files stay." % output
            )

    def arm_boot(self):
        """Have the old files put back by the next boot: the timer does not outlive one."""
        script = os.path.join(self.folder, "put-back.sh")
        text = BOOT_UNIT.format(
            name=self.name, guards=GUARDS, script=script, before=" ".join(self.own_units())
        ).encode()
        os.makedirs(os.path.dirname(self.boot_link), mode=0o755, exist_ok=True)
        write(self.boot_unit, text, 0o644)
        if not os.path.lexists(self.boot_link):
            os.symlink(self.boot_unit, self.boot_link)
        # A host that loses its power must not keep the change and lose the way back.
        os.sync()

    def own_units(self):
        """The units that the guarded files are of, by their own file or one in their NAME.d."""
        found = set()
        for item in self.payload["files"]:
            folder, name = os.path.split(item["dest"])
            if folder.startswith(UNITS) and folder.endswith(".d"):
                found.add(os.path.basename(folder)[: -len(".d")])
            elif folder == UNITS:
                found.add(name)
        return sorted(found)

    def disarm_boot(self):
        for path in (self.boot_link, self.boot_unit):
            if os.path.lexists(path):
                os.unlink(path)

    def disarm(self):
        run("systemctl stop %s.timer" % self.unit)

    def place(self, item):
        content = self.content(item)
        if content is None:
            if os.path.lexists(item["dest"]):
                os.unlink(item["dest"])
            return
        os.makedirs(os.path.dirname(item["dest"]), mode=0o755, exist_ok=True)
        write(item["dest"], content, int(item["mode"], 8))

    def judge(self):
        verify = self.payload["verify"]
        if not verify:
            return
        code, output = run(verify)
        if code:
            raise Refused(
                "`%s` refused the new configuration: %s. Everything was put back as it was." % (verify, output)
            )
        lines = [line.strip().lower() for line in output.splitlines()]
        for wanted in self.payload["expect"]:
            if wanted.lower() not in lines:
                word = wanted.split()[0].lower()
                found = [line for line in lines if line.split()[:1] == [word]]
                raise Refused(
                    "the new configuration does not take effect: `%s` says %s, not %s. Everything was put back as it was. "
                    "Look for what overrides %s."
                    % (
                        verify,
                        " and ".join(found) or "nothing of it",
                        wanted,
                        ", ".join(i["dest"] for i in self.payload["files"][:1]),
                    )
                )

    def confirm(self):
        if self.payload["seconds"]:
            self.disarm()
        try:
            os.rename(self.folder, self.folder + ".done")
        except FileNotFoundError:
            raise Refused(
                "%s: the proof came too late; the host's timer had put the old configuration back. Run it again."
                % self.name
            )
        self.disarm_boot()
        shutil.rmtree(self.folder + ".done")
        write(self.record, self.loaded().encode("utf-8"), 0o600)
        return {"changed": True}

    def put_back(self):
        """Put the old configuration back now; says whether the timer had already done it."""
        self.disarm()
        if not self.pending():
            return {"changed": True, "by_timer": True}
        code, output = run("/bin/sh %s/put-back.sh" % shlex.quote(self.folder))
        if code:
            raise Refused("the old configuration is back in its place, but could not be loaded: %s" % output)
        return {"changed": True, "by_timer": False}


def main():
    module = AnsibleModule(
        argument_spec={"payload": {"type": "str", "required": True, "no_log": True}},
        supports_check_mode=True,
    )
    payload = json.loads(base64.b64decode(module.params["payload"]))
    guard = Guard(payload)
    stages = {"compare": guard.compare, "apply": guard.apply, "confirm": guard.confirm, "rollback": guard.put_back}
    try:
        module.exit_json(**stages[payload["stage"]]())
    except Refused as refusal:
        module.fail_json(msg="%s: %s" % (guard.name, refusal))
    except OSError as error:
        module.fail_json(msg="%s: %s: %s" % (guard.name, error.filename or "a file", error.strerror or error))


if __name__ == "__main__":
    main()
