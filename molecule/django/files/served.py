"""A package index and plain git repositories behind a login, on loopback: served.py FOLDER PORT; stdin gives user and password."""

import base64
import functools
import http.server
import sys


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Files, for those who send the login."""

    wanted = ""

    def send_head(self):
        if self.headers.get("Authorization") == self.wanted:
            return super().send_head()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="lab"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


login = ":".join(sys.stdin.read().split("\n")[:2])
Guarded.wanted = "Basic " + base64.b64encode(login.encode()).decode()
handler = functools.partial(Guarded, directory=sys.argv[1])
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), handler).serve_forever()
