#!/usr/bin/python
"""Make a site's users and directories and tell what the host has of it, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_home
short_description: Make a site's users and directories and tell what the host has of it
description:
  - Makes the service user, the build user and the site's directories where they are missing; never removes any.
  - Returns the live release, the releases and the configurations that the host has, and whether the live release's
    databases lack migrations.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The user that runs the code., type: str, required: true}
  build_user: {description: The user that owns the releases., type: str, required: true}
  databases: {description: Aliases of the databases to ask for pending migrations., type: list, elements: str, default: []}
author: Stepladder
"""

import grp
import os
import pwd
import stat
import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_site import Refused, ask, site_runner, state

ASK_SECONDS = 60


def unmigrated(given, now):
    """Whether the databases lack migrations of the live release.

    What cannot be asked counts as lacking some: the step that migrates then says what is wrong, unless the run brings
    the release or the settings with which it can be asked.
    """
    base, live = given["directory"], now["live"]
    if not live or not given["databases"]:
        return False
    try:
        runner = site_runner(base, live, now["live_config"], given["user"], ASK_SECONDS)
        answers = [
            ask(runner, base, live, "pending", "django: no answer", database=name) for name in given["databases"]
        ]
    except (Refused, OSError):
        return True
    return any(answer["pending"] for answer in answers)


def account(name, home, check):
    """Make a system account without a password or a shell; returns whether it was missing. Raises Refused."""
    try:
        pwd.getpwnam(name)
        return False
    except KeyError:
        pass
    if not check:
        command = ["useradd", "--system", "--home-dir", home, "--no-create-home", "--shell", "/usr/sbin/nologin"]
        try:
            grp.getgrnam(name)
            command += ["--gid", name]
        except KeyError:
            command += ["--user-group"]
        done = subprocess.run([*command, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Refused("django: the user %s could not be made: %s" % (name, done.stdout.strip()))
    return True


def directory(path, user, group, mode, check):
    """Make or mend one directory; returns whether it differed. Raises Refused."""
    try:
        uid, gid = pwd.getpwnam(user).pw_uid, pwd.getpwnam(group).pw_gid
        info = os.stat(path)
    except (KeyError, FileNotFoundError):
        if check:
            return True
        os.makedirs(path)
    else:
        if not stat.S_ISDIR(info.st_mode):
            raise Refused("django: %s is not a directory. It was left alone. Move it away first." % path)
        if (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (uid, gid, mode):
            return False
    if check:
        return True
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    return True


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "build_user": {"type": "str", "required": True},
            "databases": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    base, user, builder = (module.params[key] for key in ("directory", "user", "build_user"))
    wanted = [
        (base, "root", "root", 0o755),
        (base + "/build", builder, builder, 0o700),
        # Set-group-id: what the build user puts below belongs to the service user's group, which may read it.
        # Others may pass, as the build user does, and find nothing below that lets them in.
        (base + "/releases", "root", user, 0o2751),
        (base + "/config", "root", user, 0o750),
        (base + "/shared", "root", "root", 0o755),
        (base + "/shared/static", "root", "root", 0o755),
        (base + "/shared/media", user, user, 0o755),
    ]
    try:
        changed = account(user, base, module.check_mode)
        changed |= account(builder, base + "/build", module.check_mode)
        # Every one of them, whatever the first has said.
        changed |= sum(directory(*one, module.check_mode) for one in wanted) > 0
        now = state(base)
        module.exit_json(changed=changed, unmigrated=unmigrated(module.params, now), **now)
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
