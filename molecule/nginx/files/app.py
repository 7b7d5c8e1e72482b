"""An application that answers with what it was given and notes each request.

/slow and /held take their time, /dies ends without an answer.
"""

import http.server
import json
import os
import socketserver
import time

FOLDER = "/run/app"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        started = time.time()
        with open(f"{FOLDER}/requests", "a") as notes:
            notes.write(f"{self.path}\n")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/dies":
            self.close_connection = True
            return
        if self.path == "/slow":
            time.sleep(3)
        while self.path == "/held" and os.path.exists(f"{FOLDER}/hold"):
            time.sleep(0.1)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = json.dumps({"path": self.path, "length": len(body), "headers": headers}).encode()
        asked = float(headers.get("x-request-start", "t=0").removeprefix("t="))
        self.send_response(503 if self.path == "/broken" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Request-ID", "the-applications-own")
        self.send_header("X-Queue-Seconds", f"{max(0.0, started - asked):.3f}")
        if self.path == "/cookies":
            for number in range(3):
                self.send_header("Set-Cookie", f"c{number}={'x' * 3500}")
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = answer

    def address_string(self):
        return "nginx"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


# The socket is reached through a link, as that of a release that is live.
server = Server(f"{FOLDER}/a.sock", Handler)
os.chmod(f"{FOLDER}/a.sock", 0o666)
os.symlink("a.sock", f"{FOLDER}/live.sock")
server.serve_forever()
