"""Tells the web server how long a request waited for a free worker, for its log.

nginx notes when it passed a request on (X-Request-Start: t=<seconds>); the answer says how long that was before this
process took it up (X-Queue-Seconds). Both run on one host, so it is one clock.
"""

import re
import time

STARTED = re.compile(r"t=(\d{1,12}(?:\.\d{1,6})?)")


def middleware(get_response):
    """The outermost middleware: what others do counts as work, not as waiting."""

    def answer(request):
        taken = time.time()
        response = get_response(request)
        started = STARTED.fullmatch(request.headers.get("X-Request-Start", ""))
        if started:
            response["X-Queue-Seconds"] = f"{max(0.0, taken - float(started[1])):.3f}"
        return response

    return answer
