"""Asks a Celery application something, with the release's own Python; the last line printed is the answer, as JSON.

`ask.py APP load` tells what the application is made of. `ask.py APP ping SECONDS NODE...` asks nodes for a sign of
life until all have answered or the seconds are over.
"""

import importlib.util
import json
import os
import sys
import time


def load(app):
    import celery

    app.loader.import_default_modules()
    app.finalize()
    limits = [task.time_limit or 0 for task in app.tasks.values()]
    found = {
        "celery": celery.__version__,
        "flower": importlib.util.find_spec("flower") is not None,
        "longest_task": max(limits, default=0),
        "visibility": (app.conf.broker_transport_options or {}).get("visibility_timeout"),
    }
    with app.connection_for_write() as connection:
        found["transport"] = connection.transport.driver_type
    return found


def ping(app, seconds, nodes):
    """`broker` is "" when it answered, else what was wrong; `answered` are the nodes that did."""
    end = time.monotonic() + seconds
    answered = set()
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            while True:
                left = max(0.5, min(5, end - time.monotonic()))
                missing = sorted(set(nodes) - answered)
                replies = app.control.inspect(missing, timeout=left, connection=connection).ping() or {}
                answered.update(node for node in replies if node in missing)
                if answered >= set(nodes) or time.monotonic() >= end:
                    return {"broker": "", "answered": sorted(answered)}
    except Exception as error:
        return {"broker": str(error) or type(error).__name__, "answered": sorted(answered)}


def main():
    sys.path.insert(0, os.getcwd())
    from celery.app.utils import find_app

    app = find_app(sys.argv[1])
    answer = load(app) if sys.argv[2] == "load" else ping(app, float(sys.argv[3]), sys.argv[4:])
    print("\n" + json.dumps(answer), flush=True)


main()
