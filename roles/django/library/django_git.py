#!/usr/bin/python
"""Bring a site's bare mirror of its git repository up to date and name the commit that is asked for."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_git
short_description: Bring a site's bare mirror of its git repository up to date and name the commit asked for
description:
  - Runs git as the build user. The deploy key is written to a file on a memory file system for as long as git runs.
  - A host key that is not known is refused.
options:
  directory: {description: The site's directory., type: path, required: true}
  build_user: {description: The user that owns the mirror., type: str, required: true}
  url: {description: The repository., type: str, required: true}
  version: {description: "A branch, tag or commit; empty is the repository's default branch.", type: str, default: ""}
  url_user: {description: The user of a repository behind HTTPS., type: str, default: ""}
  url_password: {description: That user's password or token., type: str, default: ""}
  deploy_key: {description: A private key for the repository., type: str, default: ""}
  known_hosts: {description: Lines of a known_hosts file., type: str, default: ""}
author: Stepladder
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_git_access import Access
from ansible.module_utils.django_site import URL_CREDENTIALS, Refused

COMMIT = re.compile(r"^[0-9a-f]{40}$")


def refresh(access, mirror, url):
    if not os.path.isdir(mirror):
        os.mkdir(mirror, 0o700)
        os.chown(mirror, access.runner.account.pw_uid, access.runner.account.pw_gid)
    if not os.path.exists(mirror + "/HEAD"):
        access.git(["init", "--quiet", "--bare", mirror], "django: %s could not be made" % mirror)
    access.git(["-C", mirror, "config", "remote.origin.url", url], "django: git refused the repository's address")
    refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
    access.git(
        ["-C", mirror, "fetch", "--quiet", "--prune", "--no-write-fetch-head", "origin", *refs],
        "django: the repository %s could not be fetched. What is live stays live. Check django_source.git, its deploy_key "
        "and known_hosts" % URL_CREDENTIALS.sub("", url),
    )


def resolve(access, mirror, version):
    """The commit that a branch, tag or abbreviated commit means. Raises Refused."""
    if not version:
        answer = access.git(["-C", mirror, "ls-remote", "origin", "HEAD"], "django: the repository does not answer")
        if answer.strip():
            return answer.split()[0]
        raise Refused(
            "django: the repository has no default branch. What is live stays live. Name a version (django_version; with "
            "playbooks/deploy.yml -e version=...)."
        )
    for name in ("refs/tags/" + version, "refs/heads/" + version, version):
        code, out, _said = access.runner.run(
            ["git", "-C", mirror, "rev-parse", "--verify", "--quiet", name + "^{commit}"]
        )
        if code == 0 and COMMIT.match(out.strip()):
            return out.strip()
    raise Refused(
        "django: the repository has no branch, tag or commit named %s. What is live stays live. "
        "Push it, or name one that is there (django_version; with playbooks/deploy.yml -e version=...)." % version
    )


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "build_user": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            **Access.OPTIONS,
        },
        supports_check_mode=True,
    )
    given = module.params
    mirror = given["directory"] + "/repository.git"
    if module.check_mode and not os.path.isdir(mirror):
        module.exit_json(changed=True, commit="0" * 40)
    try:
        with Access(given) as access:
            refresh(access, mirror, given["url"])
            module.exit_json(changed=False, commit=resolve(access, mirror, given["version"]))
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
