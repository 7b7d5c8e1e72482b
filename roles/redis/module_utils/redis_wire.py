"""What the role's modules say to a server: its protocol, and a copy of it that runs on nothing to read a configuration."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import resource
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time

TIMEOUT = 20  # seconds for one answer
LOCAL = "local-root"  # the user whose password is kept on the host, for root alone
LOCAL_MARK = "@LOCAL@"  # stands for the hash of that password in the text of users.acl
OPEN_FILES = 65536  # as in the unit: a server with fewer lowers maxclients by itself


class Refused(Exception):
    """What stops the run; its text is the sentence for the operator."""


class ErrorReply(Exception):
    """The server's refusal of a command, in its words."""


class Client:
    """One connection that speaks RESP2; texts are UTF-8, and bytes that are none survive."""

    def __init__(self, sock):
        sock.settimeout(TIMEOUT)
        self.sock = sock
        self.stream = sock.makefile("rwb")

    def call(self, *words):
        parts = [str(word).encode("utf-8", "surrogateescape") for word in words]
        self.stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        self.stream.flush()
        return self.answer()

    def answer(self):
        line = self.stream.readline()
        if not line:
            raise OSError("the server closed the connection")
        kind, rest = line[:1], line[1:-2].decode("utf-8", "surrogateescape")
        if kind == b"+":
            return rest
        if kind == b"-":
            raise ErrorReply(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if rest == "-1":
                return None
            return self.stream.read(int(rest) + 2)[:-2].decode("utf-8", "surrogateescape")
        if kind == b"*":
            return None if rest == "-1" else [self.answer() for _ in range(int(rest))]
        raise OSError("the answer is no Redis protocol: %r" % line[:40])

    def info(self, *sections):
        lines = self.call("INFO", *sections).split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def config(self):
        flat = self.call("CONFIG", "GET", "*")
        return dict(zip(flat[::2], flat[1::2], strict=False))

    def users(self):
        """The rules of each user as the server lists them, for comparing only.

        Redis 7.0 lists commands by their effect, in an order that differs from process to process.
        """
        listed = {line.split(" ", 2)[1]: line.split(" ", 2)[2] for line in self.call("ACL", "LIST")}
        if self.info("server")["redis_version"].startswith("7.0."):
            return {name: " ".join(sorted(rules.split(" "))) for name, rules in listed.items()}
        return listed

    def close(self):
        with contextlib.suppress(OSError):
            self.stream.close()
        self.sock.close()


def by_socket(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(TIMEOUT)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Client(sock)


def by_tls(address, port, ca, pair=None, name=""):
    """A verified connection; returns (client, the certificate that was served, as DER)."""
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = bool(name)
    if pair:
        context.load_cert_chain(*pair)
    plain = socket.create_connection((address, port), timeout=TIMEOUT)
    try:
        sock = context.wrap_socket(plain, server_hostname=name or None)
    except BaseException:
        plain.close()
        raise
    return Client(sock), sock.getpeercert(binary_form=True)


def leaf(path):
    """The first certificate of a PEM file, as DER."""
    with open(path, encoding="ascii", errors="ignore") as handle:
        text = handle.read()
    start, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
    return ssl.PEM_cert_to_DER_cert(text[start : end + len("-----END CERTIFICATE-----")])


def reachable(bind):
    """An address on this host at which a server with this `bind` answers."""
    first = bind[0].lstrip("-")
    return {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "::*": "::1"}.get(first, first)


def setting(text, name, default=""):
    """A setting's value in the text of a configuration, without quotes; the last one counts."""
    found = default
    for line in text.splitlines():
        words = line.split(None, 1)
        if words and words[0].lower() == name:
            found = words[1].strip().strip('"') if len(words) > 1 else ""
    return found


def rules(acl, local_hash):
    """The rules of each user as the text of users.acl gives them, ready for ACL SETUSER."""
    lines = acl.replace(LOCAL_MARK, local_hash).splitlines()
    return {line.split()[1]: line.split()[2:] for line in lines if line.startswith("user ")}


def meaning(program, user, group, config, acl, local_hash, sentinel=False):
    """What the program makes of a configuration: (settings, users). It runs on no port, without data, for a moment.

    Raises Refused with the program's own words when it does not take the configuration.
    """
    folder = tempfile.mkdtemp(prefix="stepladder-redis-")
    process = None
    try:
        owner = pwd.getpwnam(user)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        password = secrets.token_hex(16)
        own_hash = sha256(password)
        paths = {name: os.path.join(folder, name) for name in ("config", "users.acl", "socket", "log", "pid")}
        for name, text in (("config", config), ("users.acl", acl.replace(LOCAL_MARK, own_hash))):
            with open(paths[name], "w", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600)) as handle:
                handle.write(text)
            os.chown(paths[name], owner.pw_uid, owner.pw_gid)
        options = {
            "--port": "0", "--tls-port": "0", "--unixsocket": paths["socket"], "--dir": folder, "--pidfile": paths["pid"],
            "--aclfile": paths["users.acl"], "--supervised": "no", "--logfile": "",
        }  # fmt: skip
        allow_open_files()
        with open(paths["log"], "wb") as log:
            process = subprocess.Popen(
                [program, paths["config"], *(["--sentinel"] if sentinel else []), *(word for pair in options.items() for word in pair)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
                user=owner.pw_uid, group=owner.pw_gid, extra_groups=[grp.getgrnam(group).gr_gid],
            )  # fmt: skip
        client = None
        end = time.monotonic() + TIMEOUT
        while client is None:
            if process.poll() is not None or time.monotonic() > end:
                with open(paths["log"], encoding="utf-8", errors="replace") as handle:
                    raise Refused(words_of(handle.read()))
            try:
                client = by_socket(paths["socket"])
            except OSError:
                time.sleep(0.02)
        try:
            client.call("AUTH", LOCAL, password)
            users = {name: rules.replace(own_hash, local_hash) for name, rules in client.users().items()}
            return {} if sentinel else client.config(), users
        finally:
            client.close()
    finally:
        if process and process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def allow_open_files():
    """Let the trial run have as many open files as the unit gives, as far as this process may."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(hard, OPEN_FILES)))


def words_of(log):
    """What a server that did not start complained about."""
    skip = (
        "oO0OoO0OoO0Oo", "version=", "Configuration loaded", "monotonic clock", "Running mode", "Server initialized",
        "Memory overcommit", "TCP backlog",
    )  # fmt: skip
    bare = (re.sub(r"^\d+:[A-Z] .*?\d\d\d [.*#-] ", "", line).strip() for line in log.splitlines())
    lines = [line for line in bare if line and not any(word in line for word in skip)]
    return "; ".join(lines[-6:]) or "it said nothing"


def sha256(text):
    import hashlib

    return hashlib.sha256(text.encode("utf-8")).hexdigest()
