"""Writes numbered rows one after the other, as an application would, and says which of them were acknowledged and when.

`writer.py CONNINFO FIRST FOLDER`: until FOLDER/enough is there; then one line of JSON.
"""

import json
import os
import sys
import time

import psycopg2

conninfo, number, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
server, acknowledged, last, gap, refused = None, [], time.monotonic(), 0.0, 0
words = ""
while not os.path.exists(os.path.join(folder, "enough")):
    number += 1
    try:
        if server is None:
            server = psycopg2.connect(conninfo)
            server.autocommit = True
        with server.cursor() as cursor:
            cursor.execute("insert into written (number) values (%s)", (number,))
            # A commit that was cancelled while it waited for a replica is a warning, not an error: not acknowledged.
            if any("canceling the wait" in notice or "canceling wait" in notice for notice in server.notices):
                raise psycopg2.OperationalError("not replicated")
        now = time.monotonic()
        gap, last = max(gap, now - last), now
        acknowledged.append(number)
        if len(acknowledged) == 1:
            open(os.path.join(folder, "started"), "w").close()
        time.sleep(0.04)
    except psycopg2.Error as error:
        refused, words, server = refused + 1, str(error).strip(), None
        time.sleep(0.1)
gap = max(gap, time.monotonic() - last)
print(json.dumps({"acknowledged": acknowledged, "gap": round(gap, 2), "refused": refused, "words": words}))
