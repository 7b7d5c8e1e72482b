"""`send.py TASK KEY COUNT SECONDS QUEUE [RATE]` sends tasks and writes down each that the broker has taken.

The keys are KEY-0, KEY-1 and so on; with a rate, so many a second are sent, until /run/send.stop appears.
"""

import os
import sys
import time

from celery import Celery

task, key, count, seconds, queue = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
rate = float(sys.argv[6]) if len(sys.argv) > 6 else 0
with open("/srv/x/env") as handle:
    os.environ.update(line.rstrip("\n").split("=", 1) for line in handle)
app = Celery(broker=os.environ["BROKER_URL"])
if os.environ["BROKER_URL"].startswith("amqps:"):
    # Only a RabbitMQ that confirms has taken what was sent.
    app.conf.update(broker_use_ssl={"server_hostname": None}, broker_transport_options={"confirm_publish": True})
begin = time.monotonic()
with open("/srv/x/data/sent", "a", buffering=1) as sent:
    for number in range(count):
        arguments = [f"{key}-{number}"] + ([seconds] if task == "work" else [])
        app.send_task(f"shop.{task}", arguments, queue=queue, retry=True, retry_policy={"max_retries": None})
        sent.write(f"{key}-{number}\n")
        if rate:
            if os.path.exists("/run/send.stop"):
                break
            time.sleep(max(0.0, begin + (number + 1) / rate - time.monotonic()))
