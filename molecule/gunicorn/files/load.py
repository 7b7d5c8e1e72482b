#!/usr/bin/python3
"""Open-loop load through nginx: `load.py SECONDS RATE` starts RATE requests a second, whatever the answers do.

Stops early, after two more seconds, when /run/load.stop appears. Prints one JSON document.
"""

import http.client
import json
import os
import sys
import threading
import time


def request(answers):
    start = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=30)
        connection.request("GET", "/")
        answer = connection.getresponse()
        what = answer.read().decode().split(" scheme")[0] if answer.status == 200 else f"status {answer.status}"
    except OSError as error:
        what = f"failed {error}"
    answers.append((what, time.monotonic() - start))


def main():
    seconds, rate = float(sys.argv[1]), float(sys.argv[2])
    answers, threads = [], []
    begin = time.monotonic()
    count, end = 0, begin + seconds
    while time.monotonic() < end:
        if os.path.exists("/run/load.stop"):
            end = min(end, time.monotonic() + 2)
            os.unlink("/run/load.stop")
        thread = threading.Thread(target=request, args=(answers,))
        thread.start()
        threads.append(thread)
        count += 1
        time.sleep(max(0.0, begin + count / rate - time.monotonic()))
    for thread in threads:
        thread.join()
    kinds = {what: sum(1 for w, _ in answers if w == what) for what in {w for w, _ in answers}}
    times = sorted(seconds for _, seconds in answers)
    print(json.dumps({"requests": count, "kinds": kinds, "p50": times[len(times) // 2], "longest": times[-1]}))


main()
