"""Stamps every Celery task with the time at which it was sent, so that a queue can say how long its oldest has waited.

A task that is sent again (a retry) begins to wait anew.
"""

import time

from celery.signals import before_task_publish

HEADER = "stepladder_sent"


def stamp(headers=None, **_):
    # The older message protocol has no headers of its own.
    if headers is not None:
        headers[HEADER] = time.time()


before_task_publish.connect(stamp, weak=False, dispatch_uid="stepladder_tasks")
