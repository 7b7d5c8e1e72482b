"""Asks a Celery application something, with the release's own Python; the last line printed is the answer, as JSON.

`ask.py APP load` tells what the application is made of. `ask.py APP ping SECONDS NODE...` asks nodes for a sign of
life until all have answered or the seconds are over. `ask.py APP queues NAME...` tells of these queues, and of all others
that the broker or a worker knows, how much waits in each.
"""

import importlib.util
import json
import os
import sys
import time
from collections import Counter

SENT = "stepladder_sent"  # a header that the sender may set: when, in seconds since the epoch


def sent_to(app):
    """The queues that the application's own tasks and its schedule go to."""
    found = set()
    for name, task in app.tasks.items():
        if name.startswith("celery."):
            continue
        own = {"queue": task.queue} if getattr(task, "queue", None) else {}
        try:
            queue = app.amqp.router.route(own, name, (), {}).get("queue")
        except (IndexError, KeyError, TypeError):
            continue  # a router that goes by a task's arguments cannot be asked without
        found.add(getattr(queue, "name", queue) or app.conf.task_default_queue)
    for entry in (app.conf.beat_schedule or {}).values():
        queue = (entry.get("options") or {}).get("queue")
        found |= {getattr(queue, "name", queue)} if queue else set()
    return sorted(found)


def load(app):
    import celery

    app.loader.import_default_modules()
    app.finalize()
    limits = [task.time_limit or 0 for task in app.tasks.values()]
    found = {
        "celery": celery.__version__,
        "flower": importlib.util.find_spec("flower") is not None,
        "longest_task": max(limits, default=0),
        "sent_to": sent_to(app),
        "soft_time_limit": app.conf.task_soft_time_limit,
        "time_limit": app.conf.task_time_limit,
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


def bound(channel):
    """The queues that somebody has ever sent to or consumed, but those of Celery's own talk (Redis only)."""
    found = set()
    for key in channel.client.scan_iter(match=(channel.keyprefix_queue % {"exchange": "*"}), count=1000):
        for member in channel.client.smembers(key):
            found.add((member.decode() if isinstance(member, bytes) else member).split(channel.sep)[-1])
    return {name for name in found if not name.endswith(".pidbox") and not name.startswith("celeryev")}


def oldest(channel, keys):
    """When the message that is next in line of these lists was sent; None when none of them says so."""
    sent = []
    for key in keys:
        message = channel.client.lindex(key, -1)
        header = message and (json.loads(message).get("headers") or {}).get(SENT)
        sent += [header] if header else []
    return min(sent, default=None)


def queues(app, names):
    """Per queue: `length`, `oldest` (seconds, or None when the broker does not tell), `consumers` (workers)."""
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        redis = connection.transport.driver_type == "redis"
        listening = app.control.inspect(timeout=3, connection=connection).active_queues() or {}
        consumers = Counter(queue["name"] for found in listening.values() for queue in found)
        channel = connection.default_channel
        found = []
        for name in sorted({*names, *consumers, *(bound(channel) if redis else ())}):
            row = {"queue": name, "length": 0, "oldest": None, "consumers": consumers[name]}
            if redis:
                keys = [channel._q_for_pri(name, priority) for priority in channel.priority_steps]
                row["length"] = sum(channel.client.llen(key) for key in keys)
                sent = oldest(channel, keys)
                row["oldest"] = None if sent is None else max(0.0, round(time.time() - sent, 1))
            else:
                # A queue that is not there ends its channel, so each question has one of its own.
                with connection.channel() as asked:
                    try:
                        row["length"] = asked.queue_declare(name, passive=True).message_count
                    except connection.channel_errors:
                        row["length"] = 0
            found.append(row)
        return found


def main():
    sys.path.insert(0, os.getcwd())
    from celery.app.utils import find_app

    app = find_app(sys.argv[1])
    verb, words = sys.argv[2], sys.argv[3:]
    if verb == "load":
        answer = load(app)
    elif verb == "queues":
        answer = queues(app, words)
    else:
        answer = ping(app, float(words[0]), words[1:])
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
