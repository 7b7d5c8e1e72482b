#!/usr/bin/python
"""Tell in one call what a host's certificates are: contents of the public parts, and whether each fits its key."""

from __future__ import annotations

DOCUMENTATION = r"""
module: certificates_state
short_description: Tell what certificates a host holds
description:
  - Reads the leaf certificates under a directory and says whether each belongs to the key beside it.
  - Never returns a key, and changes nothing.
options:
  directory:
    description: Where the certificates are.
    type: str
    required: true
  leaves:
    description: The names of the leaves to look at.
    type: list
    elements: str
    required: true
author: Stepladder
"""

import grp
import os
import stat
import subprocess

from ansible.module_utils.basic import AnsibleModule


def public_key(*words):
    """The public key that openssl finds with these words, or None."""
    done = subprocess.run(
        ("openssl", *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return done.stdout.strip() if done.returncode == 0 else None


def look_at(folder):
    """One leaf: its certificate's text, whether the key fits it, and who may read the key."""
    certificate, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    found = {"certificate": None, "key": None, "fits": False}
    if os.path.isfile(certificate):
        with open(certificate, encoding="ascii", errors="replace") as handle:
            found["certificate"] = handle.read()
    if os.path.isfile(key):
        info = os.stat(key)
        try:
            group = grp.getgrgid(info.st_gid).gr_name
        except KeyError:
            group = str(info.st_gid)
        found["key"] = {"group": group, "owner": info.st_uid, "mode": "%04o" % stat.S_IMODE(info.st_mode)}
        own = public_key("pkey", "-in", key, "-pubout")
        found["fits"] = own is not None and own == public_key("x509", "-in", certificate, "-noout", "-pubkey")
        found["readable"] = own is not None
    return found


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "str", "required": True},
            "leaves": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    directory = module.params["directory"]
    leaves = {name: look_at(os.path.join(directory, name)) for name in module.params["leaves"]}
    module.exit_json(changed=False, leaves=leaves)


if __name__ == "__main__":
    main()
