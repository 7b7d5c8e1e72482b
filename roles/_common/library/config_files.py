#!/usr/bin/python
"""Put a set of files in place: atomically, validated, with a way back. Called by the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: config_files
short_description: Put a set of rendered files in place in one call
description:
  - The action plugin of the same name renders the files on the controller and calls this module once.
  - See roles/_common/README.md for the task's arguments.
options:
  payload:
    description: What to put in place, packed by the action plugin (base64 of JSON).
    type: str
    required: true
author: Stepladder
"""

import base64
import contextlib
import grp
import json
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule

HIDDEN = "(not shown: secret)"


class Refused(Exception):
    """A set of files that cannot or must not be put in place; its text is the sentence for the operator."""


def owner_ids(item, check):
    """The numeric (uid, gid) of an item's owner and group; -1 stands for a name that check mode may miss.

    Raises Refused when a name does not exist and the run is for real.
    """
    ids = []
    for key, lookup in (
        ("owner", lambda name: pwd.getpwnam(name).pw_uid),
        ("group", lambda name: grp.getgrnam(name).gr_gid),
    ):
        name = item.get(key)
        try:
            ids.append(int(name) if str(name).isdigit() else lookup(str(name)))
        except KeyError:
            if not check:
                what = "user" if key == "owner" else "group"
                raise Refused(
                    "%s should belong to %s %s, which does not exist on this host. Create it before this task."
                    % (item.get("dest") or item.get("path"), what, name)
                )
            ids.append(-1)
    return tuple(ids)


class Current:
    """What stands at a path now: kind (none, file, link, directory), content, target, owner and mode."""

    def __init__(self, path):
        self.path = path
        self.kind, self.content, self.target, self.mode, self.uid, self.gid = "none", None, None, None, None, None
        try:
            info = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        self.mode, self.uid, self.gid = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
        if stat.S_ISLNK(info.st_mode):
            self.kind, self.target = "link", os.readlink(path)
        elif stat.S_ISDIR(info.st_mode):
            self.kind = "directory"
        elif stat.S_ISREG(info.st_mode):
            self.kind = "file"
            with open(path, "rb") as handle:
                self.content = handle.read()
        else:
            self.kind = "special"

    def put_back(self):
        """Make the path what it was when this object was made."""
        if self.kind == "none":
            if os.path.lexists(self.path):
                os.unlink(self.path)
        elif self.kind == "link":
            replace_link(self.path, self.target)
        else:
            replace_file(self.path, self.content, self.uid, self.gid, self.mode)


def temporary_beside(dest):
    # A leading dot and this ending keep the file out of the globs that programs read (conf.d/*.conf, sudoers.d).
    return tempfile.mkstemp(prefix=".", suffix=".stepladder~", dir=os.path.dirname(dest))


def stage_file(dest, content, uid, gid, mode):
    """Write content to a temporary file beside dest with its final owner and mode; returns its path."""
    handle, path = temporary_beside(dest)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    except BaseException:
        os.unlink(path)
        raise
    return path


def replace_file(dest, content, uid, gid, mode):
    os.replace(stage_file(dest, content, uid, gid, mode), dest)


def replace_link(dest, target):
    handle, path = temporary_beside(dest)
    os.close(handle)
    os.unlink(path)
    os.symlink(target, path)
    os.replace(path, dest)


def run(command):
    """Run a command line without a shell; returns (exit code, its output), 127 when the program is missing."""
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
    except FileNotFoundError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, "no answer within 120 seconds"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def program_is_here(command):
    return shutil.which(shlex.split(command)[0]) is not None


class Plan:
    """One file of the set: what stands, what is wanted, and whether they differ."""

    def __init__(self, item, check):
        self.item, self.dest, self.check = item, item["dest"], check
        self.now = Current(self.dest)
        self.uid, self.gid = owner_ids(item, check) if item["state"] == "present" and not item["link"] else (None, None)
        self.mode = int(item["mode"], 8)
        self.wanted = item["content"].encode("utf-8") if item["content"] is not None else None
        if self.now.kind in ("directory", "special"):
            raise Refused(
                "%s is a %s, not a file. No file was replaced. Move it away first." % (self.dest, self.now.kind)
            )
        self.staged = None

    @property
    def content_differs(self):
        if self.item["state"] == "absent":
            return self.now.kind != "none"
        if self.item["once"] and self.now.kind != "none":
            return False
        if self.item["link"]:
            return self.now.kind != "link" or self.now.target != self.item["link"]
        return self.now.kind != "file" or self.now.content != self.wanted

    @property
    def attributes_differ(self):
        if self.item["state"] == "absent" or self.item["link"] or self.now.kind != "file":
            return False
        return (self.now.uid, self.now.gid, self.now.mode) != (self.uid, self.gid, self.mode)

    @property
    def differs(self):
        return self.content_differs or self.attributes_differ

    def stage(self):
        """Write the new content beside the old file and let its own program judge it. Raises Refused."""
        folder = os.path.dirname(self.dest)
        if not os.path.isdir(folder):
            if self.check:
                return
            raise Refused("%s: its directory %s does not exist. List it under directories." % (self.dest, folder))
        if self.wanted is None or not self.content_differs:
            return
        validate = self.item["validate"]
        if self.check and not (validate and program_is_here(validate)):
            return
        uid, gid = (os.geteuid(), os.getegid()) if self.check else (self.uid, self.gid)
        self.staged = stage_file(self.dest, self.wanted, uid, gid, 0o600 if self.check else self.mode)
        if validate:
            code, output = run(validate.replace("%s", shlex.quote(self.staged)))
            if code:
                raise Refused(
                    "the new %s was refused by `%s`: %s. No file was replaced."
                    % (self.dest, validate, output or "no words")
                )

    def discard(self):
        if self.staged and os.path.lexists(self.staged):
            os.unlink(self.staged)
        self.staged = None

    def apply(self):
        if self.item["state"] == "absent":
            os.unlink(self.dest)
        elif self.item["link"]:
            replace_link(self.dest, self.item["link"])
        elif self.staged:
            os.replace(self.staged, self.dest)
            self.staged = None
        else:
            content = self.now.content
            if content is None:
                # An entry written once that is a link to a file: its target keeps its attributes.
                return
            replace_file(self.dest, content, self.uid, self.gid, self.mode)

    def diff(self):
        secret = self.item["secret"]
        before = self.describe(self.now.kind, self.now.content, self.now.target, self.content_differs and secret)
        wanted_kind = "none" if self.item["state"] == "absent" else ("link" if self.item["link"] else "file")
        after_content = self.wanted if self.content_differs else self.now.content
        after = self.describe(wanted_kind, after_content, self.item["link"], False)
        if secret:
            before = "" if self.now.kind == "none" else HIDDEN + "\n"
            after = "" if wanted_kind == "none" else (HIDDEN + (", changed" if self.content_differs else "") + "\n")
        if self.attributes_differ:
            before = self.attributes(self.now.uid, self.now.gid, self.now.mode) + before
            after = self.attributes(self.uid, self.gid, self.mode) + after
        return {"before_header": self.dest, "after_header": self.dest, "before": before, "after": after}

    @staticmethod
    def describe(kind, content, target, hidden):
        if kind == "none":
            return ""
        if kind == "link":
            return "link to %s\n" % target
        return HIDDEN if hidden else (content or b"").decode("utf-8", "replace")

    @staticmethod
    def attributes(uid, gid, mode):
        return "(owner %s, group %s, mode %04o)\n" % (uid, gid, mode)


def make_directory(path, uid, gid, mode):
    """Make a directory with its parents; returns how to undo it."""
    made, parent = [], os.path.normpath(path)
    while not os.path.isdir(parent):
        made.append(parent)
        parent = os.path.dirname(parent)
    os.makedirs(path)

    def undo():
        for folder in made:
            with contextlib.suppress(OSError):  # someone else may have put something there by now
                os.rmdir(folder)

    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return undo


def mend_directory(now, uid, gid, mode):
    """Give a directory another owner or mode; returns how to undo it."""
    os.chown(now.path, uid, gid)
    os.chmod(now.path, mode)

    def undo():
        os.chown(now.path, now.uid, now.gid)
        os.chmod(now.path, now.mode)

    return undo


def plan_directory(item, check, undo):
    """The diff of one directory, None when it is right; makes or mends it when the run is for real. Raises Refused."""
    path, mode = item["path"], int(item["mode"], 8)
    now = Current(path)
    if item["state"] != "present":
        raise Refused("%s: config_files removes files, not directories." % path)
    if now.kind == "link" and os.path.isdir(path):
        info = os.stat(path)
        now.kind, now.mode, now.uid, now.gid = "directory", stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
    if now.kind not in ("none", "directory"):
        raise Refused("%s is not a directory. No file was replaced. Move it away first." % path)
    uid, gid = owner_ids(item, check)
    if now.kind == "directory" and (now.uid, now.gid, now.mode) == (uid, gid, mode):
        return None
    if not check:
        undo.append(make_directory(path, uid, gid, mode) if now.kind == "none" else mend_directory(now, uid, gid, mode))
    before = "" if now.kind == "none" else Plan.attributes(now.uid, now.gid, now.mode)
    return {"before_header": path, "after_header": path, "before": before, "after": Plan.attributes(uid, gid, mode)}


def put_in_place(payload, check):
    """Apply a payload; returns the module's result. Raises Refused, with everything as it was."""
    undo = []
    try:
        diffs = [diff for diff in (plan_directory(item, check, undo) for item in payload["directories"]) if diff]
        plans = [Plan(item, check) for item in payload["files"]]
        changing = [plan for plan in plans if plan.differs]
        try:
            for plan in changing:
                plan.stage()
            diffs += [plan.diff() for plan in changing]
            if not check:
                apply_all(changing, payload["verify"])
        finally:
            for plan in changing:
                plan.discard()
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    return {
        "changed": bool(diffs),
        "changed_files": [plan.dest for plan in changing],
        "effects": sorted({plan.item["effect"] for plan in changing if plan.item["effect"]}),
        "diff": diffs,
    }


def shortened(command, most=60):
    """A command as one reads it in a sentence: the beginning of a long one."""
    words = " ".join(command.split())
    return words if len(words) <= most else words[:most].rstrip() + " ..."


def apply_all(changing, verify):
    """Put every staged file in place, then verify the whole; on any failure put everything back. Raises Refused."""
    done = []
    try:
        for plan in changing:
            done.append(plan)
            plan.apply()
        if verify and changing:
            code, output = run(verify)
            if code:
                raise Refused(
                    "`%s` refused the new configuration: %s. Every file was put back as it was."
                    % (shortened(verify), output or "no words")
                )
    except BaseException:
        for plan in reversed(done):
            plan.now.put_back()
        raise


def main():
    module = AnsibleModule(
        # no_log: modules write their arguments to the host's journal, and these carry secrets.
        argument_spec={"payload": {"type": "str", "required": True, "no_log": True}},
        supports_check_mode=True,
    )
    payload = json.loads(base64.b64decode(module.params["payload"]))
    try:
        result = put_in_place(payload, module.check_mode)
    except Refused as refusal:
        module.fail_json(msg=str(refusal))
    except OSError as error:
        module.fail_json(msg="config_files: %s: %s" % (error.filename or "a file", error.strerror or error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
