"""Uploads of a site that runs on several hosts: one of them keeps the files, the others reach it over HTTPS.

Works like Django's FileSystemStorage, with these differences: two hosts that store the same name at the same moment get
two names; a file that was stored is on the disk; `path()` is not there, because the file may be on another host; files are
opened for reading only; a name that begins with a dot loses the dot.

While the keeper does not answer, whatever needs a file fails within seconds with an OSError that says so. `url()` asks
nobody, so pages that refer to files stay up.
"""

import errno
import http.client
import io
import json
import os
import select
import ssl
import tempfile
import threading
import time
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import File
from django.core.files.storage import Storage as Base
from django.utils.encoding import filepath_to_uri

PAUSE = 0.3  # seconds between tries: a restart of the keeper takes a second or two
GIVE_UP = 4.0  # seconds after which there is no further try
KEPT = 30.0  # seconds that an unused connection is trusted; nginx keeps it for 65
IN_MEMORY = 1 << 20
BLOCK = 1 << 16
NAMES = 20  # tries for a name that nobody else takes in the meantime


def readable(sock):
    """Whether there is something to read, which on a connection without a request under way is its end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class NameTaken(Exception):
    """Somebody else stored a file of that name first."""


class Storage(Base):
    """`url` is where the keeper answers, https://192.0.2.1:8443/.stepladder-media/ say; `ca` the file to verify it with.

    `timeout` is the seconds that the keeper may be silent, `connect_timeout` those that a connection may take.
    """

    def __init__(self, url, token, ca=None, base_url=None, timeout=15.0, connect_timeout=2.0):
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"The address of the keeper of uploads must begin with https://, found {url!r}.")
        self._host, self._port = parts.hostname, parts.port or 443
        self._prefix = parts.path.rstrip("/") + "/"
        self._token = token
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._context = ssl.create_default_context(cafile=ca)
        self._base_url = base_url
        self._own = threading.local()

    @property
    def base_url(self):
        url = settings.MEDIA_URL if self._base_url is None else self._base_url
        return url if url is None or url.endswith("/") else f"{url}/"

    # What Django asks of a storage.

    def get_valid_name(self, name):
        return super().get_valid_name(name).lstrip(".") or "_"

    def save(self, name, content, max_length=None):
        self._own.max_length = max_length
        try:
            return super().save(name, content, max_length)
        finally:
            self._own.max_length = None

    def _save(self, name, content):
        name = str(name).replace("\\", "/")
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
            for chunk in content.chunks():
                body.write(chunk.encode() if isinstance(chunk, str) else chunk)
            for _ in range(NAMES):
                try:
                    self._put(name, body)
                    return name
                except NameTaken:
                    name = self.get_available_name(name, max_length=getattr(self._own, "max_length", None))
        raise self._failure(name, f"each of {NAMES} names was taken")

    def _put(self, name, body):
        length = body.seek(0, io.SEEK_END)
        headers = {"Content-Length": str(length), "If-None-Match": "*", "Content-Type": "application/octet-stream"}
        # Tried again after a broken connection too: nothing is ever overwritten. At worst the first try had come
        # through after all, and the file is there under two names.
        response = self._ask("PUT", name, body, headers)
        if response.status == 412:
            raise NameTaken
        self._expect(response, name, 201)

    def _open(self, name, mode="rb"):
        if mode not in ("r", "rb", "rt"):
            raise ValueError(f"Uploads are opened for reading only, not with {mode!r}; store them with save().")
        found = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (the caller gets it open)
        try:
            self._ask("GET", name, into=found)
        except BaseException:
            found.close()
            raise
        found.seek(0)
        return File(found if mode == "rb" else io.TextIOWrapper(found), name)

    def delete(self, name):
        if not name:
            raise ValueError("The name must be given to delete().")
        response = self._ask("DELETE", name)
        if response.status != 404:
            self._expect(response, name, 204)

    def exists(self, name):
        return self._head(name, or_none=True) is not None

    def size(self, name):
        return int(self._head(name)["Content-Length"])

    def get_modified_time(self, name):
        modified = self._head(name)["Last-Modified"]
        if modified is None:
            raise self._failure(name, "it is a directory")
        time_of_it = parsedate_to_datetime(modified)
        return time_of_it if settings.USE_TZ else time_of_it.astimezone().replace(tzinfo=None)

    def listdir(self, path):
        response = self._ask("GET", path.strip("/") + "/" if path.strip("/") else "")
        found = json.loads(self._expect(response, path, 200))
        return found["directories"], found["files"]

    def url(self, name):
        if self.base_url is None:
            raise ValueError("This file is not accessible via a URL.")
        relative = filepath_to_uri(name)
        return urljoin(self.base_url, relative.lstrip("/") if relative else relative)

    # How it is asked.

    def _head(self, name, or_none=False):
        response = self._ask("HEAD", name)
        if response.status == 404 and or_none:
            return None
        self._expect(response, name, 200)
        return response.headers

    def _expect(self, response, name, status):
        """The body of an answer that is as it should be. OSError otherwise, SuspiciousFileOperation for a bad name."""
        if response.status == status:
            return response.body
        words = response.body.decode("utf-8", "replace").strip()
        if response.status == 400:
            raise SuspiciousFileOperation(f"{name!r} is no name for an upload. {words}")
        if response.status == 404:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if response.status == 507:
            raise OSError(errno.ENOSPC, f"The disk of the host that keeps the uploads, {self._host}, is full", name)
        if response.status == 413:
            raise OSError(errno.EFBIG, f"The file is larger than {self._host}, which keeps the uploads, accepts", name)
        raise self._failure(name, f"it answered {response.status} {response.reason}")

    def _failure(self, name, reason):
        return OSError(
            errno.EIO, f"The host that keeps the uploads, {self._host}:{self._port}, could not be used: {reason}", name
        )

    def _ask(self, method, name, body=None, headers=None, into=None):
        """The keeper's answer, read to its end. OSError when there is none within seconds."""
        started = time.monotonic()
        while True:
            try:
                response = self._once(method, name, body, headers or {}, into)
            except ssl.SSLCertVerificationError as error:
                self._drop()
                raise self._failure(name, f"its certificate is not the right one ({error.verify_message})")
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.status not in (502, 503):
                    if into is not None:
                        self._expect(response, name, 200)
                    return response
                reason = f"it answered {response.status} {response.reason}"
            if time.monotonic() - started > GIVE_UP:
                raise self._failure(name, reason)
            time.sleep(PAUSE)

    def _once(self, method, name, body, headers, into):
        connection = self._connection()
        if body is not None:
            body.seek(0)
        path = self._prefix + quote(str(name).replace("\\", "/").lstrip("/"), safe="/")
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {self._token}", **headers})
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # The keeper may have refused without reading it all; then its answer is there.
            if body is None:
                raise
        response = connection.getresponse()
        self._own.used = time.monotonic()
        response.body = b""
        if into is not None and response.status == 200:
            into.seek(0)
            into.truncate()
            while block := response.read(BLOCK):
                into.write(block)
            if into.tell() != int(response.headers["Content-Length"]):
                raise http.client.IncompleteRead(b"")
        else:
            response.body = response.read()
        if response.will_close:
            self._drop()
        return response

    def _connection(self):
        """This thread's connection, a new one where the last one is closed or has been idle for long."""
        kept = getattr(self._own, "connection", None)
        if kept is not None:
            idle = time.monotonic() - self._own.used > KEPT
            if self._own.process == os.getpid() and kept.sock is not None and not idle and not readable(kept.sock):
                return kept
            self._drop()
        made = http.client.HTTPSConnection(
            self._host, self._port, timeout=self._connect_timeout, context=self._context, blocksize=BLOCK
        )
        made.connect()
        made.sock.settimeout(self._timeout)
        self._own.connection, self._own.process, self._own.used = made, os.getpid(), time.monotonic()
        return made

    def _drop(self):
        kept = getattr(self._own, "connection", None)
        self._own.connection = None
        if kept is not None:
            kept.close()
