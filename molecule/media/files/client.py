#!/opt/client/bin/python
"""A site that uses the storage as Django does; prints what came of it as JSON. client.py WHAT [arguments]"""

import json
import os
import sys
import time

from django.conf import settings

URL = "https://127.0.0.1:8443/.stepladder-media/"
settings.configure(
    USE_TZ=True,
    MEDIA_URL="/media/",
    STORAGES={
        "default": {
            "BACKEND": "stepladder_media.Storage",
            "OPTIONS": {
                "url": os.environ.get("KEEPER", URL),
                "token": os.environ.get("TOKEN", "the-t0ken-of-the-shop"),
                "ca": os.environ.get("CA", "/etc/stepladder/tls/ca.pem"),
            },
        }
    },
)

from django.core.files.base import ContentFile  # noqa: E402 (after the settings)
from django.core.files.storage import default_storage  # noqa: E402


def round_trip(name: str) -> dict:
    content = os.urandom(2_500_000)
    stored = default_storage.save(name, ContentFile(content))
    with default_storage.open(stored) as found:
        same = found.read() == content
    return {
        "name": stored,
        "same": same,
        "size": default_storage.size(stored),
        "url": default_storage.url(stored),
        "listed": default_storage.listdir(os.path.dirname(stored))[1],
        "age": abs(time.time() - default_storage.get_modified_time(stored).timestamp()),
    }


def save(name: str, size: str = "10") -> dict:
    started = time.monotonic()
    try:
        done = {"name": default_storage.save(name, ContentFile(b"x" * int(size)))}
    except Exception as error:
        done = {"error": f"{type(error).__name__}: {error}"}
    return {**done, "seconds": time.monotonic() - started}


def race(start: str, name: str, count: str) -> dict:
    """Store one name again and again, from a moment on that several processes share.

    None asks whether the name is free, as though each had done so just before another one took it.
    """
    time.sleep(max(0.0, float(start) - time.time()))
    content = f"of {os.getpid()} ".encode()
    return {"pid": os.getpid(), "names": [default_storage._save(name, ContentFile(content)) for _ in range(int(count))]}


def many(prefix: str, seconds: str) -> dict:
    """Store files one after the other for a while; those that failed, and those that are not there in the end."""
    end, names, failed = time.monotonic() + float(seconds), [], []
    while time.monotonic() < end:
        try:
            names.append(default_storage.save(f"{prefix}/{len(names)}", ContentFile(b"1")))
        except OSError as error:
            failed.append(str(error))
    return {
        "stored": len(names),
        "failed": failed,
        "gone": [name for name in names if not default_storage.exists(name)],
    }


if __name__ == "__main__":
    what = {"round_trip": round_trip, "save": save, "race": race, "many": many}[sys.argv[1]]
    print(json.dumps(what(*sys.argv[2:])))
