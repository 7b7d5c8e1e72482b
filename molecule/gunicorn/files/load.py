#!/usr/bin/python3
"""Open-loop load through nginx: `load.py SECONDS RATE` starts RATE requests a second, whatever the answers do.

Each has a twin that takes the same way, client to nginx to a Python server, but to one that stands still: what the
twins wait is the machine's doing and not that of whatever happens to the site.

Stops early, after two more seconds, when /run/load.stop appears. Prints one JSON document.
"""

import http.client
import http.server
import json
import os
import sys
import threading
import time


class Still(http.server.BaseHTTPRequestHandler):
    """What stands still: it answers at once, always."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"still")

    def log_message(self, *words):
        pass


def request(path, answers):
    start = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        what = answer.read().decode().split(" scheme")[0] if answer.status == 200 else f"status {answer.status}"
    except OSError as error:
        what = f"failed {error}"
    answers.append((what, time.monotonic() - start))


def main():
    seconds, rate = float(sys.argv[1]), float(sys.argv[2])
    answers, twins, threads = [], [], []
    still = http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Still)
    threading.Thread(target=still.serve_forever, daemon=True).start()
    begin = time.monotonic()
    count, end = 0, begin + seconds
    while time.monotonic() < end:
        if os.path.exists("/run/load.stop"):
            end = min(end, time.monotonic() + 2)
            os.unlink("/run/load.stop")
        for path, kept in (("/", answers), ("/still", twins)):
            thread = threading.Thread(target=request, args=(path, kept))
            thread.start()
            threads.append(thread)
        count += 1
        time.sleep(max(0.0, begin + count / rate - time.monotonic()))
    for thread in threads:
        thread.join()
    kinds = {what: sum(1 for w, _ in answers if w == what) for what in {w for w, _ in answers}}
    times = sorted(seconds for _, seconds in answers)
    found = {"requests": count, "kinds": kinds, "p50": times[len(times) // 2], "longest": times[-1]}
    print(
        json.dumps({**found, "machine": max(seconds for _, seconds in twins), "twins": sorted({w for w, _ in twins})})
    )


main()
