"""Celery's beat, which sends nothing unless it holds a lease in the broker (Redis and its like).

A second beat waits until the first has given the lease back, or has died and the lease has run out. When each entry
was last sent is kept beside the lease, so that whoever takes over goes on from there.
"""

import argparse
import datetime
import os
import socket
import sys
import threading
import time

SCHEDULER = "celery.beat:PersistentScheduler"


def tell(words):
    """Say something to systemd (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.sendto(words.encode(), "\0" + address[1:] if address[0] == "@" else address)


def say(words):
    print(words, file=sys.stderr, flush=True)
    tell(f"STATUS={words}")


class Lease:
    """A key in Redis that names its holder and goes away by itself when the holder does not renew it."""

    def __init__(self, client, name, holder, seconds):
        self.client, self.holder, self.seconds = client, holder, seconds
        self.key, self.runs = f"celery-beat:{name}:holder", f"celery-beat:{name}:runs"
        self.until = 0.0

    def current(self):
        value = self.client.get(self.key)
        return value.decode() if isinstance(value, bytes) else value

    def take(self):
        """Get or renew the lease; returns whether it is ours. Raises the client's errors."""
        asked = time.monotonic()
        if not self.client.set(self.key, self.holder, nx=True, px=int(self.seconds * 1000)) and not self.renewed():
            self.until = 0.0
            return False
        self.until = asked + self.seconds
        return True

    def renewed(self):
        """Prolong the lease if it is still ours, in a transaction; a script would need one more right."""
        from redis.exceptions import WatchError

        with self.client.pipeline() as pipe:
            try:
                pipe.watch(self.key)
                if self.current() != self.holder:
                    return False
                pipe.multi()
                pipe.pexpire(self.key, int(self.seconds * 1000))
                return bool(pipe.execute()[0])
            except WatchError:
                return False

    def give_back(self):
        try:
            if self.current() == self.holder:
                self.client.delete(self.key)
        except Exception as error:
            say(f"the lease could not be given back, so it runs out: {error}")

    def wait(self):
        """Until the lease is ours."""
        told = ""
        while True:
            try:
                if self.take():
                    return
                words = f"waits: {self.current()} holds the lease and sends the ticks"
            except Exception as error:
                words = f"waits for the broker: {error}"
            if words != told:
                say(words)
                told = words
            time.sleep(min(2.0, self.seconds / 6))

    def keep(self):
        """Renew for as long as the process lives; runs as a thread."""
        while True:
            time.sleep(self.seconds / 3)
            try:
                if not self.take():
                    return  # the next tick ends the process
            except Exception as error:
                print(f"the lease could not be renewed: {error}", file=sys.stderr, flush=True)

    def hold(self):
        """Return only while the lease is ours. Else the process ends: what another has sent meanwhile is read anew."""
        if time.monotonic() >= self.until:
            say("lost the lease, or could not renew it; starting over")
            raise SystemExit(0)

    def sent(self, entry):
        self.client.hset(self.runs, entry, datetime.datetime.now(datetime.UTC).isoformat())

    def last_sent(self):
        """When each entry was last sent, by whomever."""
        found = self.client.hgetall(self.runs)
        text = {(k.decode() if isinstance(k, bytes) else k): (v.decode() if isinstance(v, bytes) else v)
                for k, v in found.items()}  # fmt: skip
        return {entry: datetime.datetime.fromisoformat(when) for entry, when in text.items()}


def leased(app, lease):
    """The application's scheduler, which asks for the lease before each tick and each task."""
    from celery.beat import PersistentScheduler
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    aliases = dict(load_extension_class_names("celery.beat_schedulers") or {})
    base = symbol_by_name(app.conf.beat_scheduler or SCHEDULER, aliases=aliases)

    class Scheduler(base):
        def setup_schedule(self):
            super().setup_schedule()
            # A scheduler that keeps its times in a database shares them with the other hosts already.
            if isinstance(self, PersistentScheduler):
                for name, when in lease.last_sent().items():
                    entry = self.schedule.get(name)
                    if entry is not None and (entry.last_run_at is None or entry.last_run_at < when):
                        entry.last_run_at = when.astimezone(app.timezone)

        def tick(self, *args, **kwargs):
            lease.hold()
            return super().tick(*args, **kwargs)

        def apply_async(self, entry, *args, **kwargs):
            lease.hold()
            lease.sent(entry.name)
            return super().apply_async(entry, *args, **kwargs)

    Scheduler.__name__ = base.__name__
    return Scheduler


def main():
    parser = argparse.ArgumentParser()
    for word in ("name", "holder", "schedule", "loglevel"):
        parser.add_argument(f"--{word}", required=True)
    parser.add_argument("--lease", type=float, required=True)
    parser.add_argument("app")
    options = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    from celery.app.utils import find_app

    app = find_app(options.app)
    app.loader.import_default_modules()
    tell("READY=1")
    connection = app.connection_for_write()
    if connection.transport.driver_type != "redis":
        say("sends the ticks, without a lease: only Redis and its like can hold one")
        app.Beat(schedule=options.schedule, loglevel=options.loglevel, quiet=True).run()
        return
    lease = None
    while lease is None:
        try:
            lease = Lease(connection.channel().client, options.name, options.holder, options.lease)
        except Exception as error:
            say(f"waits for the broker: {error}")
            time.sleep(2)
    lease.wait()
    threading.Thread(target=lease.keep, daemon=True).start()
    say("sends the ticks")
    try:
        app.Beat(scheduler=leased(app, lease), schedule=options.schedule, loglevel=options.loglevel, quiet=True).run()
    finally:
        lease.give_back()


if __name__ == "__main__":
    main()
