#!/usr/bin/python
"""Count what the application answers for a while, from the site's own log."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_watch
short_description: Count what the application answers for a while, from the site's own log
description:
  - Reads what is written to the access log from the moment it is called, also across a rotation.
  - An error is an answer of 500 or more that came from the application, or its not answering at all.
  - Fails as soon as the errors are both at least C(least) and more than C(errors) of all that was seen so far after half
    the time, or of all at the end.
options:
  log: {description: The access log, one JSON object a line., type: path, required: true}
  seconds: {description: How long to watch., type: int, default: 20}
  errors: {description: Which part of the requests may be errors (0 to 1)., type: float, default: 0.02}
  least: {description: How many errors there must be whatever their part., type: int, default: 3}
author: Stepladder
"""

import json
import os
import time

from ansible.module_utils.basic import AnsibleModule

POLL_SECONDS = 0.5


class Follower:
    """The lines that are added to a file from now on, also when another one takes its place."""

    def __init__(self, path):
        self.path = path
        self.stream = self.opened()
        if self.stream:
            self.stream.seek(0, os.SEEK_END)

    def opened(self):
        try:
            return open(self.path, "rb")
        except FileNotFoundError:
            return None

    def rotated(self):
        try:
            return self.stream is None or os.stat(self.path).st_ino != os.fstat(self.stream.fileno()).st_ino
        except FileNotFoundError:
            return False

    def lines(self):
        """What was added since the last call; a line that is not yet whole is left for the next one."""
        found = self.whole()
        if self.rotated():
            if self.stream:
                self.stream.close()
            self.stream = self.opened()
            found += self.whole()
        return found

    def whole(self):
        if self.stream is None:
            return []
        start = self.stream.tell()
        data = self.stream.read()
        end = data.rfind(b"\n") + 1
        self.stream.seek(start + end)
        return data[:end].splitlines()


def judge(line):
    """(whether the application was asked, whether it failed, what was asked) of one line of the log."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False, False, ""
    status, upstream = entry.get("status"), entry.get("upstream_status")
    asked = upstream is not None or status in (502, 504)
    failed = asked and max(status or 0, upstream or 0) >= 500
    return asked, failed, "%s %s: %s" % (entry.get("method"), entry.get("uri"), status)


def watch(given, sleep=time.sleep, clock=time.monotonic):
    """{requests, errors, examples} of the time that was watched."""
    follower, start = Follower(given["log"]), clock()
    requests, errors, examples = 0, 0, []
    while True:
        for line in follower.lines():
            asked, failed, what = judge(line)
            requests += asked
            errors += failed
            if failed and what not in examples and len(examples) < 5:
                examples.append(what)
        gone = clock() - start
        over = errors >= given["least"] and errors > given["errors"] * requests
        if gone >= given["seconds"] or (over and gone >= given["seconds"] / 2):
            return {"requests": requests, "errors": errors, "examples": examples, "over": over}
        sleep(POLL_SECONDS)


def main():
    module = AnsibleModule(
        argument_spec={
            "log": {"type": "path", "required": True},
            "seconds": {"type": "int", "default": 20},
            "errors": {"type": "float", "default": 0.02},
            "least": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, requests=0, errors=0, examples=[])
    seen = watch(module.params)
    if seen.pop("over"):
        module.fail_json(
            msg="nginx: %d of %d requests failed in the application within %d seconds, for example %s."
            % (seen["errors"], seen["requests"], module.params["seconds"], "; ".join(seen["examples"])),
            **seen,
        )
    module.exit_json(changed=False, **seen)


if __name__ == "__main__":
    main()
