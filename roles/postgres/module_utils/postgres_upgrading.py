"""What an upgrade to another major version has done so far on this host: a file beside the data, read by every run."""

from __future__ import annotations

import json
import os

from ansible.module_utils.postgres_server import LIB, read

# In this order; from HELD on the old server must not serve any more, from GONE on it never may.
STEPS = ("made", "checked", "held", "linking", "linked", "starting", "started", "extensions", "analysed")
HELD, GONE = "held", "starting"


def folder(cluster):
    """Where pg_upgrade works, and where the note of the steps is."""
    return "%s/stepladder-upgrade-%s" % (LIB, cluster)


def progress(cluster):
    """What was noted: from, to, port and done (the steps); empty where no upgrade has begun."""
    text = read(os.path.join(folder(cluster), "state.json"))
    return json.loads(text) if text else {}


def note(cluster, found):
    """Write it down so that a lost machine has either the old note or the new one."""
    path = os.path.join(folder(cluster), "state.json")
    with open(path + ".new", "w") as out:
        json.dump(found, out)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    os.rename(path + ".new", path)
    directory = os.open(folder(cluster), os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def summary(cluster):
    """For postgres_state: {} or from, to, the last step, and whether the old server may still serve."""
    found = progress(cluster)
    if not found:
        return {}
    done = [step for step in STEPS if step in found["done"]]
    return {"from": found["from"], "to": found["to"], "step": done[-1] if done else "", "held": HELD in done}
