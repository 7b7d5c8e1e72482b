"""The storage for uploads, with Django's own interface, against the service that keeps them: the real one, on this machine."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage

from kit import ROOT
from rendered import Role

sys.path.append(str(ROOT / "roles/django/files"))
import stepladder_media  # noqa: E402 (it lies among the files that the role ships)

SERVER = ROOT / "roles/media/files/media_server.py"
TOKEN, OTHER = "t0ken-of-the-site", "t0ken-of-tomorrow"
MOST = 1 << 20

if not settings.configured:
    settings.configure(MEDIA_URL="/media/", USE_TZ=True, TIME_ZONE="UTC")


class Door:
    """TLS in front of the service's socket, as nginx is: one connection to it for each of a client's."""

    def __init__(self, context: ssl.SSLContext, path: Path) -> None:
        self.context, self.path, self.connections = context, path, 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.relay, args=(client,), daemon=True).start()

    def relay(self, plain: socket.socket) -> None:
        with plain, socket.socket(socket.AF_UNIX) as service:
            try:
                service.connect(str(self.path))
                client = self.context.wrap_socket(plain, server_side=True)
                while True:
                    for end in select.select([client, service], [], [])[0]:
                        data = end.recv(65536)
                        while end is client and client.pending():
                            data += client.recv(65536)
                        if not data:
                            return
                        (client if end is service else service).sendall(data)
            except OSError:
                return


def certificate(folder: Path, address: str) -> Path:
    """A certificate that vouches for itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keeper")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{address}.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Keeper:
    """The service over a directory, and the door in front of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.socket = folder, folder / "media", folder / "s"
        self.root.mkdir()
        (folder / "tokens").write_text(f"{TOKEN}\n{OTHER}\n")
        self.ca = certificate(folder, "127.0.0.1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca)
        self.start()
        self.door = Door(context, self.socket)
        self.url = f"https://127.0.0.1:{self.door.port}/"

    def start(self) -> None:
        words = [
            "--directory",
            self.root,
            "--socket",
            self.socket,
            "--token-file",
            self.folder / "tokens",
            "--most",
            MOST,
        ]
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen([sys.executable, "-I", SERVER, *map(str, words), "--seconds", "2"], stderr=log)
        wait_until(lambda: answers(self.socket))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0

    def storage(self, **options: Any) -> stepladder_media.Storage:
        return stepladder_media.Storage(**{"url": self.url, "token": TOKEN, "ca": str(self.ca), **options})

    def ask(self, request: bytes, *more: bytes) -> tuple[int, dict[str, str], bytes]:
        """What the service says to raw bytes: status, headers in small letters, body."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.socket))
            client.sendall(request)
            for part in filter(None, more):
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body

    def say(self, method: str, path: str, body: bytes = b"", token: str = TOKEN, **headers: str) -> int:
        fields = {"Authorization": f"Bearer {token}", "If_None_Match": "*", "Content_Length": str(len(body)), **headers}
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: x",
            *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items() if v),
        ]
        return self.ask("\r\n".join([*lines, "", ""]).encode("latin-1"), body)[0]

    def files(self) -> set[str]:
        """Everything below the directory, what is on its way too."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


def wait_until(holds: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.fixture
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    made = Keeper(tmp_path_factory.mktemp("k"))
    yield made
    made.door.listener.close()
    made.process.kill()
    made.process.wait()


def test_file_that_was_saved_is_read_back_whole(keeper: Keeper) -> None:
    storage, content = keeper.storage(), os.urandom(300_000)
    name = storage.save("products/2026/01/a b & ü%2F#?.png", ContentFile(content))
    assert name == "products/2026/01/a b & ü%2F#?.png"
    assert (keeper.root / name).read_bytes() == content
    with storage.open(name) as found:
        assert found.read() == content
    assert storage.size(name) == 300_000
    assert storage.exists(name) and not storage.exists("products/none.png")
    assert storage.listdir("") == (["products"], [])
    assert storage.listdir("products/2026/01/") == storage.listdir("/products/2026/01") == ([], ["a b & ü%2F#?.png"])
    modified = storage.get_modified_time(name)
    assert abs(modified - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(seconds=30)
    assert (
        storage.url(name)
        == FileSystemStorage().url(name)
        == "/media/products/2026/01/a%20b%20%26%20%C3%BC%252F%23%3F.png"
    )
    storage.delete(name)
    storage.delete(name)
    assert not storage.exists(name) and keeper.files() == set()


def test_files_look_like_djangos_own(keeper: Keeper, tmp_path: Path) -> None:
    """So that a site that goes back to one host finds what it would have made itself, and the web server may read it."""
    before = os.umask(0o022)
    try:
        FileSystemStorage(tmp_path / "own").save("a/b/c.txt", ContentFile("text"))
    finally:
        os.umask(before)
    keeper.storage().save("a/b/c.txt", ContentFile("text"))
    for name in ("a", "a/b", "a/b/c.txt"):
        ours, own = ((root / name).stat() for root in (keeper.root, tmp_path / "own"))
        assert (ours.st_mode, ours.st_uid, ours.st_gid, ours.st_nlink) == (
            own.st_mode,
            own.st_uid,
            own.st_gid,
            own.st_nlink,
        )
    assert stat.S_IMODE((keeper.root / ".incoming").stat().st_mode) == 0o700


@pytest.mark.parametrize("content", ["text – ü", b"", b"x" * (MOST - 1)])
def test_content_of_every_kind_arrives(keeper: Keeper, content: str | bytes) -> None:
    storage = keeper.storage()
    name = storage.save("file", ContentFile(content))
    with storage.open(name, "r" if isinstance(content, str) else "rb") as found:
        assert found.read() == content


def test_content_that_was_read_before_and_knows_no_size_arrives_whole(keeper: Keeper) -> None:
    plain = io.BytesIO(b"0123456789")
    plain.read(4)
    assert keeper.storage().size(keeper.storage().save("a", File(plain, name="a"))) == 10


NAME = "photograph-of-a-cat.png"


def test_two_that_store_one_name_at_once_get_two_names(keeper: Keeper) -> None:
    """Each asks whether the name is free before anyone has stored it; as a rule that goes wrong on two hosts."""
    count = 12
    free = threading.Barrier(count)

    class Racing(stepladder_media.Storage):
        raced = False

        def exists(self, name: str) -> bool:
            found = super().exists(name)
            if not self.raced:
                self.raced = True
                free.wait(10)
            return found

    racers = [Racing(keeper.url, TOKEN, str(keeper.ca)) for _ in range(count)]
    names: dict[int, str] = {}

    def store(number: int) -> None:
        names[number] = racers[number].save(NAME, ContentFile(f"of {number}".encode()), max_length=25)

    threads = [threading.Thread(target=store, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(names.values())) == count == len(keeper.files())
    assert NAME in names.values() and max(map(len, names.values())) <= 25
    for number, name in names.items():
        assert (keeper.root / name).read_bytes() == f"of {number}".encode()


def test_nothing_is_overwritten_even_where_a_client_asks_for_it(keeper: Keeper) -> None:
    assert keeper.say("PUT", "/a", b"first") == 201
    assert keeper.say("PUT", "/a", b"second") == 412
    assert keeper.say("PUT", "/a", b"second", If_None_Match="") == 428
    assert keeper.say("PUT", "/a", b"second", If_None_Match='"x"') == 428
    (keeper.root / "folder").mkdir()
    assert keeper.say("PUT", "/folder", b"second") == 412
    assert keeper.say("PUT", "/a/b", b"second") == 409
    assert (keeper.root / "a").read_bytes() == b"first" and keeper.files() == {"a"}


def test_name_of_a_directory_is_taken(keeper: Keeper) -> None:
    storage = keeper.storage()
    storage.save("folder/a", ContentFile(b"1"))
    assert storage.exists("folder")
    assert storage.save("folder", ContentFile(b"2")).startswith("folder_")


def test_body_that_ends_early_leaves_nothing(keeper: Keeper) -> None:
    head = f"PUT /x/a HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nIf-None-Match: *\r\nContent-Length: 100\r\n\r\n".encode()
    assert keeper.ask(head, b"only this")[0] == 400
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(keeper.socket))
        client.sendall(head + b"and then silence")
        wait_until(lambda: keeper.files() != set())  # on its way
        wait_until(lambda: keeper.files() == set(), 6)  # given up after --seconds
    assert not (keeper.root / "x").exists()


def test_what_a_crash_left_behind_is_gone_after_the_next_start(keeper: Keeper) -> None:
    keeper.say("PUT", "/kept", b"1")
    keeper.process.kill()
    keeper.process.wait()
    (keeper.root / ".incoming/99-1").write_text("half")
    keeper.start()
    assert keeper.files() == {"kept"}


@pytest.mark.parametrize(
    ("size", "headers", "status"),
    [
        (MOST, {}, 201),
        (MOST + 1, {}, 413),
        (1, {"Content_Length": ""}, 411),
        (1, {"Content_Length": "-1"}, 411),
        (1, {"Content_Length": "1_0"}, 411),
        (1, {"Content_Length": "", "Transfer_Encoding": "chunked"}, 411),
    ],
)
def test_size_must_be_said_and_fit(keeper: Keeper, size: int, headers: dict[str, str], status: int) -> None:
    assert keeper.say("PUT", "/a", b"x" * size, **headers) == status
    assert keeper.files() == ({"a"} if status == 201 else set())


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ü"])
def test_nothing_is_done_without_the_token(keeper: Keeper, token: str) -> None:
    (keeper.root / "a").write_text("secret")
    for method, path in (
        ("GET", "/a"),
        ("HEAD", "/a"),
        ("GET", "/"),
        ("PUT", "/b"),
        ("DELETE", "/a"),
        ("GET", "/../x"),
    ):
        assert keeper.say(method, path, token=token) == 401, (method, path)
    assert keeper.say("GET", "/a", Authorization="") == 401
    assert keeper.say("GET", "/a", Authorization=TOKEN) == 401
    assert keeper.files() == {"a"}


def test_each_of_two_tokens_is_accepted(keeper: Keeper) -> None:
    keeper.storage().save("a", ContentFile(b"1"))
    assert keeper.storage(token=OTHER).exists("a")


ODD = ["/../outside", "/a/../../outside", "/%2e%2e/outside", "/a/%2e%2e%2f%2e%2e%2foutside", "/..%2foutside", "/.hidden",
       "/a/.hidden", "/.incoming/1-1", "/a%00b", "/a%0ab", "/a//b", "/./a", "/%ff", "/a/", "outside",
       "/" + "x" * 256]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
def test_names_that_are_none_are_refused(keeper: Keeper, path: str) -> None:
    (keeper.folder / "outside").write_text("not yours")
    (keeper.root / ".hidden").write_text("not yours")
    (keeper.root / "a").mkdir()
    before = keeper.files()
    assert keeper.say("PUT", path, b"mine") == 400
    for method in ("GET", "HEAD", "DELETE"):
        assert keeper.say(method, path) in ((200, 204) if path == "/a/" else (400, 404)), method
    assert keeper.files() == before
    assert (keeper.folder / "outside").read_text() == "not yours"


@pytest.mark.parametrize("target", ["../outside", "..", "/etc", ".incoming", "../media2"])
def test_links_that_lead_out_lead_nowhere(keeper: Keeper, target: str) -> None:
    (keeper.folder / "outside").write_text("not yours")
    (keeper.folder / "media2").mkdir()
    (keeper.root / "link").symlink_to(target)
    assert {keeper.say(method, "/link") for method in ("GET", "HEAD", "PUT", "DELETE")} == {400}
    assert {keeper.say(method, "/link/b") for method in ("GET", "HEAD", "PUT", "DELETE")} == {400}
    assert keeper.say("GET", "/link/") == 400
    assert (keeper.folder / "outside").read_text() == "not yours" and list((keeper.folder / "media2").iterdir()) == []


def test_links_inside_are_followed_and_removed_themselves(keeper: Keeper) -> None:
    (keeper.root / "real").mkdir()
    (keeper.root / "link").symlink_to("real")
    assert keeper.say("PUT", "/link/a", b"1") == 201
    assert (keeper.root / "real/a").read_text() == "1"
    assert keeper.say("DELETE", "/link") == 204
    assert keeper.files() == {"real/a"}


def test_directories_are_removed_when_they_are_empty(keeper: Keeper) -> None:
    storage = keeper.storage()
    storage.save("d/a", ContentFile(b"1"))
    with pytest.raises(OSError, match="409"):
        storage.delete("d")
    storage.delete("d/a")
    storage.delete("d")
    assert not storage.exists("d") and keeper.say("DELETE", "/") == 400


def test_hidden_files_and_what_arrives_are_not_listed(keeper: Keeper) -> None:
    (keeper.root / ".hidden").write_text("x")
    (keeper.root / "seen").write_text("x")
    assert keeper.storage().listdir("") == ([], ["seen"])
    assert json.loads(keeper.ask(f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())[2])["files"] == [
        "seen"
    ]


def test_what_is_not_there_is_said_as_django_says_it(keeper: Keeper) -> None:
    storage = keeper.storage()
    for ask in (storage.open, storage.size, storage.get_modified_time, storage.listdir):
        with pytest.raises(FileNotFoundError):
            ask("none")
    with pytest.raises(NotImplementedError):
        storage.path("a")
    with pytest.raises(ValueError, match="must be given"):
        storage.delete("")
    for mode in ("wb", "a", "r+b"):
        with pytest.raises(ValueError, match="reading only"):
            storage.open("a", mode)


def test_bad_names_are_suspicious_and_a_leading_dot_goes(keeper: Keeper) -> None:
    storage = keeper.storage()
    for name in ("../a", "/a", "a/../../b"):
        with pytest.raises(SuspiciousFileOperation):
            storage.save(name, ContentFile(b"1"))
    with pytest.raises(SuspiciousFileOperation, match="no name for an upload"):
        storage.exists("a/.b")
    assert storage.generate_filename("a/.htaccess") == "a/htaccess"
    assert storage.generate_filename("a/..x") == "a/x"


def test_larger_file_than_is_accepted_says_so(keeper: Keeper) -> None:
    with pytest.raises(OSError, match="larger than 127.0.0.1"):
        keeper.storage().save("a", ContentFile(b"x" * (MOST + 1)))
    assert keeper.files() == set()


def test_base_url_of_ones_own_is_kept(keeper: Keeper) -> None:
    assert keeper.storage(base_url="https://cdn.example.com/m").url("a b") == "https://cdn.example.com/m/a%20b"


def test_wrong_certificate_or_address_is_never_trusted(keeper: Keeper) -> None:
    other = certificate(keeper.folder, "127.0.0.2")
    started = time.monotonic()
    with pytest.raises(OSError, match="certificate is not the right one"):
        keeper.storage(ca=str(other)).exists("a")
    with pytest.raises(OSError, match="certificate is not the right one.*mismatch"):
        keeper.storage(url=keeper.url.replace("127.0.0.1", "localhost")).exists("a")
    assert time.monotonic() - started < 1, "such a failure is not tried again"
    with pytest.raises(ValueError, match="https"):
        keeper.storage(url="http://127.0.0.1/")


def test_wrong_token_is_said_and_not_shown(keeper: Keeper) -> None:
    with pytest.raises(OSError, match="answered 401") as caught:
        keeper.storage(token="secret-of-another").exists("a")
    assert "secret-of-another" not in str(caught.value)
    assert TOKEN not in (keeper.folder / "log").read_text()


def test_keeper_that_is_away_fails_within_seconds_and_pages_stay_up(keeper: Keeper) -> None:
    storage = keeper.storage()
    keeper.stop()
    for ask in (lambda: storage.save("a", ContentFile(b"1")), lambda: storage.exists("a"), lambda: storage.open("a")):
        started = time.monotonic()
        with pytest.raises(OSError, match="The host that keeps the uploads, 127.0.0.1"):
            ask()
        assert time.monotonic() - started < 5
    assert storage.url("a") == "/media/a"


def test_keeper_that_hangs_fails_within_seconds(keeper: Keeper) -> None:
    storage = keeper.storage(timeout=1)
    keeper.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(OSError, match="timed out"):
            storage.save("a", ContentFile(b"1"))
    finally:
        keeper.process.send_signal(signal.SIGCONT)
    assert time.monotonic() - started < 6


def test_restart_of_the_keeper_is_not_noticed_and_keeps_the_files(keeper: Keeper) -> None:
    storage, failures = keeper.storage(), []
    storage.save("before", ContentFile(b"1"))
    done = threading.Event()

    def upload() -> None:
        number = 0
        while not done.is_set():
            try:
                number += 1
                storage.save(f"{number}", ContentFile(b"1"))
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=upload)
    thread.start()
    for _ in range(3):
        time.sleep(0.1)
        keeper.stop()
        keeper.start()
    done.set()
    thread.join(20)
    assert failures == [] and "before" in keeper.files() and len(keeper.files()) > 3


def test_stop_waits_for_what_is_under_way(keeper: Keeper) -> None:
    head = f"PUT /a HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nIf-None-Match: *\r\nContent-Length: 6\r\n\r\n".encode()
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(keeper.socket))
        client.sendall(head + b"abc")
        wait_until(lambda: keeper.files() != set())
        keeper.process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
        client.sendall(b"def")
        assert client.recv(100).startswith(b"HTTP/1.1 201")
    assert keeper.process.wait(5) == 0 and (keeper.root / "a").read_bytes() == b"abcdef"


def test_many_at_once_are_served_and_more_than_that_are_turned_away(keeper: Keeper) -> None:
    waiting = []
    for _ in range(64):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(keeper.socket))
        client.sendall(b"GET / HTTP/1.1\r\n")
        waiting.append(client)
    time.sleep(0.2)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(keeper.socket))
            assert client.recv(1) == b""
    finally:
        for client in waiting:
            client.close()
    wait_until(lambda: answers_with(keeper, 200))


def answers_with(keeper: Keeper, status: int) -> bool:
    try:
        return keeper.say("GET", "/") == status
    except (ConnectionError, IndexError):  # turned away once more
        return False


def test_service_tells_systemd_that_it_is_ready_and_alive(keeper: Keeper, tmp_path: Path) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(keeper.folder / "n"))
    heard.settimeout(5)
    keeper.stop()
    os.environ["NOTIFY_SOCKET"] = str(keeper.folder / "n")
    try:
        keeper.start()
    finally:
        del os.environ["NOTIFY_SOCKET"]
    assert [heard.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_service_does_not_start_without_a_directory_or_a_token(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("\n")
    words = ["--socket", str(tmp_path / "s"), "--token-file", str(tmp_path / "none"), "--most", "1"]
    for directory, reason in ((tmp_path / "away", "is not a directory"), (tmp_path, "has no token")):
        command = [sys.executable, "-I", SERVER, "--directory", str(directory), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        assert done.returncode != 0 and reason in done.stderr


def test_names_for_the_time_without_zones(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = keeper.storage()
    storage.save("a", ContentFile(b"1"))
    monkeypatch.setattr(stepladder_media, "settings", SimpleNamespace(USE_TZ=False))
    assert abs(storage.get_modified_time("a") - datetime.datetime.now()) < datetime.timedelta(seconds=30)


PLAIN = '{"BACKEND": "django.core.files.storage.FileSystemStorage"}'
STATIC = '"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}'


@pytest.fixture(scope="module")
def overlay() -> str:
    """The settings that the role would write, with a storage of every kind."""
    sample = yaml.safe_load((ROOT / "tests/unit/samples/django.yml").read_text())[1]
    sample["django_broker_url"] = ""  # Celery is not among the tests' packages
    files = {file.dest.rsplit("/", 1)[1]: file.text for file in Role(ROOT / "roles/django", sample).files()}
    assert "SITE_STORAGE_DEFAULT_TOKEN=" in files["env"] and "TOKEN=" not in files["stepladder_settings.py"]
    return files["stepladder_settings.py"]


@pytest.mark.parametrize(
    ("project", "backend"),
    [
        ("", "stepladder_media.Storage"),
        (f'STORAGES = {{"default": {PLAIN}, {STATIC}}}', "stepladder_media.Storage"),
        (
            f'STORAGES = {{"default": {{**{PLAIN}, "OPTIONS": {{"base_url": "/m/"}}}}, {STATIC}}}',
            "stepladder_media.Storage",
        ),
        (f'STORAGES = {{"default": {{**{PLAIN}, "OPTIONS": {{"location": "/mnt/nfs"}}}}, {STATIC}}}', None),
        (f'STORAGES = {{"default": {{"BACKEND": "storages.backends.s3.S3Storage"}}, {STATIC}}}', None),
    ],
)
def test_storage_that_a_project_chose_stays_and_djangos_own_is_replaced(
    overlay: str, tmp_path: Path, project: str, backend: str | None
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").touch()
    (tmp_path / "shop/settings.py").write_text(f"{project}\n")
    (tmp_path / "stepladder_settings.py").write_text(overlay)
    program = "import json, stepladder_settings as s; print(json.dumps(s.STORAGES))"
    paths = [str(tmp_path), *filter(None, sys.path)]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "SITE_SECRET_KEY": "k", "SITE_CACHE_PASSWORD_DEFAULT": "c",
                   "SITE_DATABASE_PASSWORD_DEFAULT": "d", "SITE_STORAGE_DEFAULT_TOKEN": "t", "SITE_STORAGE_EXPORTS_TOKEN": "u"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if backend:
        options = {"url": "https://192.0.2.4:8443/.stepladder-media/", "ca": "/etc/ca.pem", "token": "t"}
        assert found["default"] == {"BACKEND": backend, "OPTIONS": options}
    else:
        assert found["default"]["BACKEND"] in project
    assert found["exports"] == {"BACKEND": "stepladder_media.Storage", "OPTIONS": {"token": "u"}}
    assert found["staticfiles"]["BACKEND"] == "stepladder_static.Storage"
