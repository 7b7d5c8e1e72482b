"""A lab of the tests' own: made by ./ladder like any other, reached through ./ladder like any other."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

import pytest

from lab import ansible, model

ROOT = Path(__file__).resolve().parents[2]
SITE = "shop.example.com"


@dataclass
class Answer:
    """What the site answered: status, body as text, headers (which an edge writes small)."""

    status: int
    text: str
    headers: Message

    def json(self):
        return json.loads(self.text)


@dataclass
class Lab:
    """The running lab, by its entry script."""

    debian: str
    name: str
    environment: dict[str, str] = field(default_factory=dict)

    def ladder(self, *words: str, seconds: int = 900, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ./ladder; a failure shows the end of its output."""
        done = subprocess.run(
            [ROOT / "ladder", *words],
            cwd=ROOT, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
        if check and done.returncode != 0:
            pytest.fail(
                f"./ladder {' '.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}"
            )
        return done

    def play(self, playbook: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.ladder("play", f"playbooks/{playbook}", *words, check=check)

    def said(self, done: subprocess.CompletedProcess[str]) -> str:
        """What a run printed, without colours; warnings are on the other stream."""
        return ansible.COLOUR.sub("", done.stdout + done.stderr)

    def changes(self, done: subprocess.CompletedProcess[str]) -> dict[str, int]:
        """The hosts that a run of a playbook changed, and how much."""
        counts = ansible.recap(done.stdout)
        assert counts, f"no recap in {self.said(done)[-4000:]}"
        return {host: count["changed"] for host, count in counts.items() if count["changed"]}

    def rehearse(self, start: int, end: int) -> dict:
        """Grow the lab from one stage to another under traffic; gives what its visitors saw."""
        self.ladder("rehearse", str(start), str(end), seconds=1200)
        return json.loads((self.folder / f"reports/rehearse-{start}-{end}.json").read_text())

    def ssh(self, host: str, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.ladder("ssh", host, command, seconds=120, check=check)

    @property
    def hosts(self) -> dict[str, str]:
        """Each host's address, as the lab remembers it."""
        return model.Lab(self.name).load().addresses

    @property
    def folder(self) -> Path:
        return model.Lab(self.name).folder

    def ssh_command(self, host: str, command: str) -> list[str]:
        """The command itself, for a test that talks with it while it runs."""
        return [*model.Lab(self.name).ssh_command(host), "--", command]

    @property
    def ca(self) -> Path:
        return self.folder / "secrets/ca/ca.pem"

    def get(
        self, path: str, *, data: dict | None = None, headers: dict[str, str] | None = None, name: str = SITE
    ) -> Answer:
        """Ask the site over HTTPS by its name, verified against the environment's CA and nothing else."""
        hosts = self.hosts
        return ask(hosts.get("edge1", hosts["web1"]), self.ca, path, data=data, headers=headers, name=name)

    def at(self, host: str, path: str, **more) -> Answer:
        """Ask one host, past the front door."""
        return ask(self.hosts[host], self.ca, path, **more)

    def wait_for(self, path: str, seconds: int = 90) -> Answer:
        """Ask until the site answers 200."""
        end = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < end:
            try:
                last = self.get(path)
                if last.status == 200:
                    return last
            except (OSError, ssl.SSLError) as error:
                last = error
            time.sleep(1)
        pytest.fail(f"{path} did not answer 200 within {seconds} s; the last answer was {last}")


class Resolved(urllib.request.HTTPSHandler):
    """HTTPS to one address under another name, as curl --resolve does it."""

    def __init__(self, address: str, context: ssl.SSLContext, seconds: float):
        super().__init__(context=context)
        self.address, self.context, self.seconds = address, context, seconds

    def https_open(self, request):
        import http.client
        import socket

        address, context, seconds = self.address, self.context, self.seconds

        class Connection(http.client.HTTPSConnection):
            def connect(self):
                plain = socket.create_connection((address, 443), timeout=seconds)
                self.sock = context.wrap_socket(plain, server_hostname=self.host)

        return self.do_open(Connection, request)


def ask(address: str, ca: Path, path: str, *, data=None, headers=None, name: str = SITE, seconds: float = 30) -> Answer:
    context = ssl.create_default_context(cafile=str(ca))
    opener = urllib.request.build_opener(Resolved(address, context, seconds))
    body = json.dumps(data).encode() if data is not None else None
    request = urllib.request.Request(f"https://{name}{path}", data=body, headers=headers or {})
    if body:
        request.add_header("Content-Type", "application/json")
    try:
        with opener.open(request, timeout=seconds) as response:
            return Answer(response.status, response.read().decode("utf-8", "replace"), response.headers)
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode("utf-8", "replace"), error.headers)


class Visitors:
    """Ten requests a second through the front door, whatever became of those before; for use in `with`."""

    def __init__(self, lab):
        self.lab, self.statuses, self._left = lab, [], threading.Event()
        self._clock = threading.Thread(target=self._start_them)

    def _start_them(self):
        with ThreadPoolExecutor(20) as pool:
            while not self._left.wait(0.1):
                pool.submit(self._visit)

    def _visit(self):
        try:
            self.statuses.append(self.lab.get("/").status)
        except OSError as error:
            self.statuses.append(repr(error))

    def __enter__(self):
        self._clock.start()
        return self

    def __exit__(self, *_):
        self._left.set()
        self._clock.join()

    def were_all_served(self, more_than: int) -> None:
        assert len(self.statuses) > more_than
        assert set(self.statuses) == {200}, Counter(self.statuses)


@pytest.fixture
def visitors(lab: Lab) -> Visitors:
    return Visitors(lab)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as long, unless `./ladder test --long` asked for it."""
    if not os.environ.get("STEPLADDER_LONG"):
        left = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_runtest_setup() -> None:
    """Begin nothing after the time that `./ladder test --minutes` gave; what is skipped is counted at the end."""
    if time.time() > float(os.environ.get("STEPLADDER_UNTIL") or "inf"):
        pytest.skip("the time given is used up")


@pytest.fixture
def alone() -> None:
    """For a promise of seconds: begins when nothing runs beside the lab's tests, after twenty minutes at the latest."""
    busy, end = os.environ.get("STEPLADDER_BUSY"), time.monotonic() + 1200
    while busy and Path(busy).exists() and time.monotonic() < end:
        time.sleep(1)


@pytest.fixture(scope="session")
def lab() -> Lab:
    # `./ladder test lab` sets the lab's name and the Debian version, makes the lab and takes it down.
    debian, name = os.environ.get("STEPLADDER_DEBIAN", "13"), os.environ["STEPLADDER_LAB"]
    running = Lab(debian, name)
    running.ladder("up", "1", "--debian", debian, seconds=1500)
    return running
