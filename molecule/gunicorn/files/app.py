"""A small WSGI application; its folder's name is its release, and some releases are broken."""

import os
import sys
import time

RELEASE = os.path.basename(os.path.dirname(os.path.abspath(__file__)))
time.sleep(1)
if RELEASE == "crash":
    print("connecting with", os.environ["SECRET_KEY"], file=sys.stderr, flush=True)
    raise RuntimeError("this release cannot be imported")


def attempt(path):
    """What happens when the service writes there."""
    try:
        with open(path, "w") as handle:
            handle.write("x")
    except OSError as error:
        return f"{path} {error.strerror}"
    return f"{path} written"


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if RELEASE == "hang":
        time.sleep(3600)
    if path == "/slow":
        time.sleep(4)
    if path == "/error":
        raise ValueError("a request that fails")
    status = "500 Broken" if RELEASE == "sick" else "200 OK"
    if path == "/healthz" and (environ.get("HTTP_HOST"), environ.get("HTTP_X_FORWARDED_PROTO")) != (
        "www.example.com",
        "https",
    ):
        status = "400 Bad Request"
    body = f"release {RELEASE} scheme {environ['wsgi.url_scheme']} {os.environ['GREETING']}\n"
    if path == "/write":
        places = ("/srv/x/media/ok", f"/srv/x/releases/{RELEASE}/bad", "/etc/bad", "/home/bad", "/run/gunicorn-x/bad")
        body = "\n".join(map(attempt, places))
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [body.encode()]
