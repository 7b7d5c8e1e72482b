"""Sending a task without making a visitor wait for a broker that does not answer."""

import logging
import threading
import time

from shop.celery import app

PAUSE_SECONDS = 5.0

log = logging.getLogger("orders.sending")
_lock = threading.Lock()
_silent_until = 0.0


def send(task: str, *arguments: object) -> bool:
    """Whether the broker has taken the task.

    After a broker that did not answer, this process sends nothing for some seconds, so that visitors do not wait for it
    one by one. One try is enough, since nobody relies on it: the periodic task finds what was not sent.
    """
    global _silent_until
    if time.monotonic() < _silent_until:
        return False
    try:
        app.send_task(task, arguments, retry=False)
    except Exception as error:  # each transport has errors of its own
        with _lock:
            _silent_until = time.monotonic() + PAUSE_SECONDS
        log.warning("The broker does not take tasks (%s: %s).", type(error).__name__, error)
        return False
    return True
