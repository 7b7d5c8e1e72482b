#!/usr/bin/python3 -I
"""Keeps one directory of files for several machines: HTTP on a Unix socket, for a web server in front that has TLS.

PUT    /a/b.png  stores a new file; a name that is taken is answered with 412, and nothing is ever overwritten
GET    /a/b.png  the file
GET    /a/       what the directory holds, {"directories": [...], "files": [...]}
HEAD             the same without the content; /a (a directory without the slash) is answered too, with X-Kind: directory
DELETE /a/b.png  removes the file, or the directory when it is empty

Every request carries `Authorization: Bearer <token>`; a line of the token file is such a token. A file that was answered
with 201 is on the disk. What arrives is kept in .incoming until it is whole, so nobody sees a part of a file.
"""

import argparse
import contextlib
import email.utils
import errno
import hmac
import http.server
import json
import os
import signal
import socket
import socketserver
import stat
import sys
import threading
import time
import urllib.parse

INCOMING = ".incoming"
BLOCK = 1 << 16
ANSWERS_AT_ONCE = 64  # each takes a thread; who comes on top is turned away and tries again
STACK = 1 << 18
LINGER = 2.0  # seconds
# What the operating system says, and what it means to a client.
STATUS_OF = {
    errno.ENOSPC: 507, errno.EDQUOT: 507, errno.ENOENT: 404, errno.ENOTDIR: 409, errno.EISDIR: 409, errno.EEXIST: 409,
    errno.ENOTEMPTY: 409, errno.ENAMETOOLONG: 400, errno.ELOOP: 400,
}  # fmt: skip


class Refused(Exception):
    """What is answered instead of what was asked for."""

    def __init__(self, status, words):
        super().__init__(words)
        self.status = status


class Place:
    """The directory. Names are relative, parts of them already judged by `parts`."""

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.incoming = os.path.join(self.root, INCOMING)
        os.makedirs(self.incoming, mode=0o700, exist_ok=True)
        for left in os.listdir(self.incoming):
            os.unlink(os.path.join(self.incoming, left))

    def path(self, parts):
        """Where a name leads; links are followed as long as they stay inside. Raises Refused."""
        path = os.path.join(self.root, *parts)
        parent = os.path.realpath(os.path.dirname(path)) if parts else self.root
        for real in (parent, os.path.realpath(path)):
            inside = os.path.commonpath((self.root, real)) == self.root
            if not inside or os.path.relpath(real, self.root).split(os.sep)[0] == INCOMING:
                raise Refused(400, "The name leads out of the directory.")
        return os.path.join(parent, parts[-1]) if parts else self.root

    def store(self, parts, body, length):
        """Store a new file of exactly that many bytes. Raises Refused, OSError."""
        path = self.path(parts)
        temporary = os.path.join(self.incoming, f"{os.getpid()}-{threading.get_ident()}")
        with open(temporary, "xb") as file:
            try:
                copy(body, file, length)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                self.make_parents(os.path.dirname(path))
                try:
                    # Unlike a rename, a link never replaces what is there.
                    os.link(temporary, path)
                except FileExistsError:
                    raise Refused(412, "The name is taken.") from None
                sync_directory(os.path.dirname(path))
            finally:
                os.unlink(temporary)

    def make_parents(self, folder):
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for one in reversed(missing):
            # Another request may have made it in between; when it is no directory, the file in it fails.
            with contextlib.suppress(FileExistsError):
                os.mkdir(one, 0o755)
            sync_directory(os.path.dirname(one))

    def remove(self, parts):
        path = self.path(parts)
        if not parts:
            raise Refused(400, "The directory itself stays.")
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
        sync_directory(os.path.dirname(path))

    def list(self, parts):
        found = {"directories": [], "files": []}
        with os.scandir(self.path(parts)) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    found["directories" if entry.is_dir() else "files"].append(entry.name)
        return {kind: sorted(names) for kind, names in found.items()}


def copy(body, file, length):
    left = length
    while left:
        block = body.read(min(BLOCK, left))
        if not block:
            raise Refused(400, f"The body ended {left} bytes early.")
        file.write(block)
        left -= len(block)


def sync_directory(path):
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parts(target):
    """The parts of a request's path, and whether it ends with a slash. Raises Refused."""
    path = target.partition("?")[0]
    try:
        name = urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise Refused(400, "The name is not UTF-8.") from None
    if not name.startswith("/"):
        raise Refused(400, "The path begins with no slash.")
    folder = name.endswith("/")
    found = name.strip("/").split("/") if name.strip("/") else []
    if name not in ("/" + "/".join(found), "/" + "/".join(found) + "/"):
        raise Refused(400, "The name has empty parts.")
    for part in found:
        if not part or part.startswith(".") or not part.isprintable():
            raise Refused(400, "A part of the name is empty, begins with a dot or has a control character in it.")
    return found, folder


class Handler(http.server.BaseHTTPRequestHandler):
    """One request; the web server in front keeps no connections."""

    protocol_version = "HTTP/1.1"
    server_version = "media"
    sys_version = ""

    def setup(self):
        self.timeout = self.server.seconds
        super().setup()

    def answer(self):
        self.close_connection = True
        try:
            given = self.headers.get("Authorization", "").encode("utf-8", "replace")
            # All of them, so that the time says nothing about which.
            if not sum(hmac.compare_digest(given, b"Bearer " + token) for token in self.server.tokens):
                raise Refused(401, "The token is missing or wrong.")
            names, folder = parts(self.path)
            {"PUT": self.put, "DELETE": self.delete, "GET": self.get, "HEAD": self.get}[self.command](names, folder)
        except Refused as refusal:
            self.refuse(refusal.status, str(refusal))
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                self.log_message("%s %s: the client went away (%s)", self.command, ascii(self.path), error)
                return
            self.refuse(STATUS_OF.get(error.errno, 500), f"{error.strerror}.")

    do_PUT = do_DELETE = do_GET = do_HEAD = answer

    def put(self, names, folder):
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not length.isascii() or not length.isdigit():
            raise Refused(411, "Say the size in Content-Length.")
        if int(length) > self.server.most:
            raise Refused(413, f"The file has {int(length)} bytes; at most {self.server.most} are accepted.")
        if self.headers.get("If-None-Match") != "*":
            raise Refused(428, "Nothing is overwritten here: say so with If-None-Match: *.")
        if folder or not names:
            raise Refused(400, "A file's name does not end with a slash.")
        self.server.place.store(names, self.rfile, int(length))
        self.say(201)

    def delete(self, names, folder):
        self.server.place.remove(names)
        self.say(204)

    def get(self, names, folder):
        path = self.server.place.path(names)
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            if folder:
                self.send(json.dumps(self.server.place.list(names)).encode(), "application/json")
            elif self.command == "HEAD":
                self.send(b"", "inode/directory", {"X-Kind": "directory"})
            else:
                raise Refused(409, "It is a directory.")
            return
        if folder or not stat.S_ISREG(info.st_mode):
            raise Refused(404, "No such file.")
        with open(path, "rb") as file:
            info = os.fstat(file.fileno())
            self.head(200, "application/octet-stream", info.st_size, {"Last-Modified": date(info.st_mtime)})
            if self.command == "GET":
                # Not more than was promised, should the file grow.
                copy_out(file, self.wfile, info.st_size)

    def refuse(self, status, words):
        self.say(status, words)
        # A connection that is closed while the client still sends is broken at its end, and the words are lost with it.
        end = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER)
            while time.monotonic() < end and self.connection.recv(BLOCK):
                pass

    def say(self, status, words=""):
        """A short answer in words; what was stored, removed or refused is noted in the journal."""
        if status != 404:
            self.log_message("%s %s %d %s", self.command, ascii(self.path), status, words)
        self.send((words + "\n").encode() if words else b"", "text/plain; charset=utf-8", status=status)

    def send(self, body, kind, headers=None, status=200):
        self.head(status, kind, len(body), headers or {})
        # Who has got an answer without a body may have closed the connection already.
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status, kind, length, headers):
        self.send_response_only(status)
        if status != 204:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(length))
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, form, *values):
        print(form % values, file=sys.stderr, flush=True)

    def address_string(self):
        return "the web server"


def copy_out(file, body, length):
    left = length
    while left:
        block = file.read(min(BLOCK, left))
        if not block:
            raise ConnectionError("the file became shorter")
        body.write(block)
        left -= len(block)


def date(seconds):
    return email.utils.formatdate(seconds, usegmt=True)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread for each request; what is under way is finished when the service stops."""

    request_queue_size = 128
    block_on_close = True

    def __init__(self, path, place, tokens, most, seconds):
        self.place, self.tokens, self.most, self.seconds = place, tokens, most, seconds
        self.free = threading.BoundedSemaphore(ANSWERS_AT_ONCE)
        super().__init__(path, Handler)

    def process_request(self, request, client_address):
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        # The web server answers 502, and the storage tries again.
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def service_actions(self):
        """Twice a second, as long as connections are accepted: systemd restarts what does not say so any more."""
        tell_systemd("WATCHDOG=1")


def tell_systemd(words):
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(words.encode(), "\0" + address[1:] if address.startswith("@") else address)


def read_tokens(path):
    with open(path, "rb") as file:
        tokens = [line for line in file.read().splitlines() if line]
    if not tokens:
        sys.exit(f"{path} has no token in it.")
    return tokens


def main():
    parser = argparse.ArgumentParser(description="Keeps a directory of files for several machines.")
    parser.add_argument("--directory", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--token-file", required=True)
    parser.add_argument("--most", type=int, required=True, help="bytes of the largest file")
    parser.add_argument("--seconds", type=int, default=60, help="that a client may take between two parts of a body")
    given = parser.parse_args()
    if not os.path.isdir(given.directory):
        sys.exit(f"{given.directory} is not a directory.")
    threading.stack_size(STACK)
    os.umask(0o022)
    place = Place(given.directory)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(given.socket)
    server = Server(given.socket, place, read_tokens(given.token_file), given.most, given.seconds)
    # Who may connect is said by the directory that the socket is in.
    os.chmod(given.socket, 0o666)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    tell_systemd("READY=1")
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
