"""backend.py NAME PORT: a small web server that says who it is and what it was given.

/readyz answers 503 while /run/NAME.sick exists, every other page 425 while /run/NAME.early does; any page takes as long as
?seconds= says; /ws speaks just enough WebSocket. /run/orders has a line for each POST that a server has begun.
"""

import base64
import hashlib
import http.server
import json
import os
import socketserver
import ssl
import sys
import time
import urllib.parse

NAME, PORT = sys.argv[1], int(sys.argv[2])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def answer(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/ws":
            return self.echo()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        early = url.path != "/readyz" and os.path.exists(f"/run/{NAME}.early")
        if self.command == "POST" and not early:
            with open("/run/orders", "a") as orders:
                orders.write(f"{NAME} {self.path}\n")
        time.sleep(float(query.get("seconds", 0)))
        status = 503 if url.path == "/readyz" and os.path.exists(f"/run/{NAME}.sick") else 425 if early else 200
        answer = json.dumps({
            "server": NAME, "path": self.path, "method": self.command, "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }).encode()  # fmt: skip
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_POST = do_HEAD = answer

    def echo(self):
        """Take the connection over, and give one frame back as it came."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        while data := self.connection.recv(4096):
            self.connection.sendall(data)
        self.close_connection = True

    def log_message(self, *words):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True


server = Server(("127.0.0.1", PORT), Handler)
if NAME == "tls":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/etc/stepladder/tls/backend/cert.pem", "/etc/stepladder/tls/backend/key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
