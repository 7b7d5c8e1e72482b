"""A small Celery application whose tasks write down that they began and ended; some releases are broken."""

import os
import sys
import time

from celery import Celery

RELEASE = os.path.basename(os.path.dirname(os.path.abspath(__file__)))
LEDGER = "/srv/x/data/ledger"
if RELEASE == "crash":
    print("connecting with", os.environ["BROKER_URL"], file=sys.stderr, flush=True)
    raise RuntimeError("this release cannot be imported")

RABBITMQ = {"broker_use_ssl": {"server_hostname": None}, "broker_transport_options": {"confirm_publish": True}}
REDIS = {"broker_transport_options": {"visibility_timeout": 12 if RELEASE == "hasty" else 25}}
app = Celery("shop", broker=os.environ["BROKER_URL"])
app.conf.update(
    **(RABBITMQ if os.environ["BROKER_URL"].startswith("amqps:") else REDIS),
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_time_limit={"brisk": 4, "endless": 30}.get(RELEASE),
    task_routes={"shop.greet": "nowhere"} if RELEASE == "astray" else None,
    worker_prefetch_multiplier=1,
    beat_schedule={"tick": {"task": "shop.tick", "schedule": 2.0, "options": {"queue": "fast"}}},
)


def note(what, key):
    """One line, appended in one write, so that lines of several processes never mix."""
    line = f"{what} {key} {RELEASE} {os.environ.get('WHO', '-')} {time.time():.3f}\n"
    handle = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, line.encode())
    os.close(handle)


@app.task
def work(key, seconds):
    note("began", key)
    time.sleep(seconds)
    note("done", key)


@app.task
def tick():
    note("tick", "-")


@app.task
def greet(key):
    note("done", key)
    with open("/srv/x/data/greeting", "w") as handle:
        handle.write(os.environ["GREETING"])


def attempt(path):
    try:
        with open(path, "w") as handle:
            handle.write("x")
    except OSError as error:
        return f"{path} {error.strerror}"
    return f"{path} written"


@app.task
def places(key):
    found = [attempt(path) for path in ("/srv/x/data/ok", f"/srv/x/releases/{RELEASE}/bad", "/etc/bad", "/home/bad",
                                        "/usr/local/lib/celery-x/bad", "/var/lib/celery-x/bad")]  # fmt: skip
    with open("/srv/x/data/places", "w") as handle:
        handle.write("\n".join(found))
    note("done", key)
