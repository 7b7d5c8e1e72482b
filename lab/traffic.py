"""Visitors of the lab's site, at a constant rate, and the proof afterwards that nothing they were promised is missing.

The load is open loop: a visit starts when its time has come, whatever became of those before, and its latency counts
from that time. A site that stalls for two seconds so shows as two seconds' worth of slow visits, not as one.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import secrets
import socket
import ssl
import struct
import threading
import time
import uuid
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path

TIMEOUT_SECONDS = 10.0
VISITORS_AT_ONCE = 200
# What a round of visits is made of.
ROUND = ("page", "order", "page", "read", "order", "page", "upload", "order", "read", "report")
PRODUCTS = 200
# What a page names its stylesheet by: another content is another name, so each release's page needs its own.
STYLESHEET = re.compile(rb'href="(/static/[^"]+\.[0-9a-f]{12}\.css)"')
REPEAT_EVERY = 5  # of so many orders one is sent again, under its key


class Failed(Exception):
    """A visit that did not get what it should; the text is the kind of failure, short enough to be counted.

    `status` is what was answered, 0 for no answer.
    """

    def __init__(self, kind: str, status: int = 0) -> None:
        super().__init__(kind)
        self.status = status

    @property
    def unanswered(self) -> bool:
        """Whether the site itself may have said nothing, so that nobody knows what it did; 502 is a proxy's word."""
        return self.status == 0 or self.status >= 500


@dataclass(frozen=True)
class Visit:
    """One visit: when it was due and how long it took from then, in seconds; `failure` is empty when it went well."""

    due: float
    seconds: float
    kind: str
    failure: str = ""


@dataclass(frozen=True)
class Mark:
    """Something that was done to the site while people used it: when, in seconds from the start, and what."""

    at: float
    what: str


@dataclass
class Door:
    """The site's front door: where it is (which may change while it is used), its name, whom to trust."""

    address: str
    hostname: str
    ca: Path

    def __post_init__(self) -> None:
        self.context = ssl.create_default_context(cafile=str(self.ca))

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """One request on a connection of its own, with the certificate verified.

        Raises Failed with the kind of failure when there is no answer.
        """
        connection = Connection(self, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            cookies = SimpleCookie("; ".join(response.headers.get_all("Set-Cookie") or []))
            kept = {name: (one.value, float(one["max-age"] or "inf")) for name, one in cookies.items()}
            return Answer(response.status, dict(response.getheaders()), response.read(), kept)
        except TimeoutError:
            raise Failed("no answer in time") from None
        except ConnectionRefusedError:
            raise Failed("connection refused") from None
        except ssl.SSLError as error:
            raise Failed(f"TLS: {error.reason or error}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Failed(type(error).__name__) from None
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers, body, and cookies as (value, seconds that they hold)."""

    status: int
    headers: dict[str, str]
    body: bytes
    cookies: dict[str, tuple[str, float]] = field(default_factory=dict)


class Connection(http.client.HTTPSConnection):
    """HTTPS to the door's address under the site's name."""

    def __init__(self, door: Door, timeout: float) -> None:
        super().__init__(door.hostname, timeout=timeout, context=door.context)
        self.door = door

    def connect(self) -> None:
        plain = socket.create_connection((self.door.address, 443), timeout=self.timeout)
        try:
            self.sock = self.door.context.wrap_socket(plain, server_hostname=self.door.hostname)
        except BaseException:
            plain.close()
            raise


def picture(content: bytes) -> bytes:
    """A PNG of one pixel that carries some content in a comment, so that no two are alike."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tEXt", b"Comment\0" + content), chunk(b"IDAT", zlib.compress(b"\0\0"))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def kind_of(number: int) -> str:
    """What a visit is, by its number: each round in another order, the same in every run.

    In a fixed order a load balancer that takes turns would send every upload to the same host.
    """
    turn, place = divmod(number, len(ROUND))
    return random.Random(turn).sample(ROUND, len(ROUND))[place]


def answered_order(answer: Answer, order: dict) -> dict:
    """The order in an answer, without what may change; raises Failed when it is not the one that was placed."""
    try:
        said = json.loads(answer.body)
        found = {name: said[name] for name in ("key", "customer", "items", "created")}
    except (ValueError, TypeError, KeyError):
        raise Failed("half an order", answer.status) from None
    if any(found[name] != order[name] for name in order):
        raise Failed("another order", answer.status)
    return found


class Jar:
    """The cookies of one visitor, for as long as they hold."""

    def __init__(self, **cookies: str) -> None:
        self.cookies = {name: (value, float("inf")) for name, value in cookies.items()}

    def take(self, answer: Answer) -> None:
        now = time.monotonic()
        self.cookies.update({name: (value, now + seconds) for name, (value, seconds) in answer.cookies.items()})

    def headers(self) -> dict[str, str]:
        now = time.monotonic()
        held = [f"{name}={value}" for name, (value, until) in self.cookies.items() if until > now]
        return {"Cookie": "; ".join(held)} if held else {}


class Traffic:
    """A running load: visits at a constant rate until `stop`, or for a number of seconds.

    `ledger` gets the key of every acknowledged order, one a line, as soon as it is acknowledged.
    """

    def __init__(self, door: Door, rate: float, ledger: Path, session: str) -> None:
        self.door, self.rate, self.ledger, self.session = door, rate, ledger, session
        self.visits: list[Visit] = []
        self.sent: dict[str, float] = {}  # an order's key -> when it was first sent, in seconds from the start
        self.answered: dict[str, float] = {}  # -> when it was first acknowledged
        self.marks: list[Mark] = []
        self.acknowledged: list[str] = []
        self.jars: dict[str, Jar] = {}  # of who placed an order, by its key
        # Orders to be sent again under their keys, each with what was answered the first time, None for no answer.
        self.repeats: deque[tuple[dict, dict | None]] = deque()
        self._answered = itertools.count()
        self.stylesheets: set[str] = set()  # that were there for the pages which named them
        self.pieces: int | None = None  # in stock and sold before the first visit, where that is known
        self.started = 0.0
        self.seconds = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._clock = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> Traffic:
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        self.ledger.write_text("")
        self.started = time.monotonic()
        self._clock.start()
        return self

    def stop(self) -> None:
        """Let the visits that are under way end, and no new one start."""
        self._stop.set()
        self._clock.join()

    def __enter__(self) -> Traffic:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    def mark(self, what: str) -> None:
        """Note that something happens to the site now."""
        self.marks.append(Mark(round(self.now, 2), what))

    def _run(self) -> None:
        with ThreadPoolExecutor(VISITORS_AT_ONCE) as pool:
            number = 0
            while not self._stop.wait(max(0.0, number / self.rate - self.now)):
                pool.submit(self._visit, number)
                number += 1
            self.seconds = self.now
        while self._repeat():
            pass

    def _visit(self, number: int) -> None:
        kind = kind_of(number)
        due = number / self.rate
        failure = ""
        try:
            getattr(self, f"_{kind}")(number)
        except Failed as failed:
            failure = str(failed)
        self._note(due, kind, failure)
        if kind == "order" and not failure:
            self._repeat()

    def _note(self, due: float, kind: str, failure: str) -> None:
        visit = Visit(round(due, 3), round(self.now - due, 4), kind, failure)
        with self._lock:
            self.visits.append(visit)

    def _ask(self, wanted: Iterable[int], method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.door.request(method, path, body, named)
        if answer.status not in wanted:
            raise Failed(f"status {answer.status}", answer.status)
        return answer

    def _page(self, number: int) -> None:
        product = self._product(number)
        path = "/" if number % 3 else f"/products/{product}/"
        page = self._ask([200], "GET", path).body
        if b"</html>" not in page:
            raise Failed("half a page")
        named = STYLESHEET.search(page)
        if not named:
            raise Failed("a page without its stylesheet")
        # From whichever machine is next, which may have another release than the one that made the page.
        try:
            self._ask([200], "GET", named[1].decode())
        except Failed as failed:
            raise Failed(f"stylesheet: {failed}", failed.status) from None
        self.stylesheets.add(named[1].decode())

    def _order(self, number: int) -> None:
        order = {
            "key": f"traffic-{uuid.uuid4().hex}",
            "customer": f"Visitor {number}",
            "items": [{"sku": self._product(number), "quantity": 1}],
        }
        try:
            answer = self._place(order)
        except Failed as failed:
            if failed.unanswered:
                self.repeats.append((order, None))
            raise
        first = answered_order(answer, order)
        if next(self._answered) % REPEAT_EVERY == 0:
            self.repeats.append((order, first))

    def _place(self, order: dict) -> Answer:
        """Send an order; when it is acknowledged for the first time, it is in the ledger before this returns."""
        key, content = order["key"], {name: order[name] for name in ("customer", "items")}
        self.sent.setdefault(key, self.now)
        answer = self._ask(
            [200, 201], "POST", "/api/orders", json.dumps(content).encode(),
            Idempotency_Key=key, Content_Type="application/json",
        )  # fmt: skip
        with self._lock:
            if key not in self.jars:
                self.acknowledged.append(key)
                self.answered[key] = self.now
                with self.ledger.open("a") as stream:
                    stream.write(key + "\n")
            self.jars.setdefault(key, Jar()).take(answer)
        return answer

    def _repeat(self) -> bool:
        """Send one of the orders that wait for it again, as a client does who got no answer; gives whether one came.

        Beside the visits, of which none waits for it. It has to be answered with the same order, and none may be
        written where one was acknowledged. An order without an answer has failed already; it is tried again later.
        """
        try:
            order, first = self.repeats.popleft()
        except IndexError:
            return False
        due, failure, answered = self.now, "", True
        try:
            answer = self._place(order)
            if first and answer.status != 200:
                raise Failed("written a second time", answer.status)
            found = answered_order(answer, order)
            if first and found != first:
                raise Failed("another order", answer.status)
        except Failed as failed:
            failure, answered = str(failed), not failed.unanswered
        if not answered and first is None:
            self.repeats.append((order, None))
        else:
            self._note(due, "again", failure)
        return answered

    def _read(self, number: int) -> None:
        """An order is there for who placed it, just now or some time ago, whichever machine is asked."""
        with self._lock:
            # Every other time the newest one, which a replica may not have yet.
            place = -1 if number % 2 else number % max(len(self.acknowledged), 1)
            key = self.acknowledged[place] if self.acknowledged else ""
            jar = self.jars.get(key, Jar())
        self._ask([200], "GET", f"/api/orders/{key}" if key else "/", **jar.headers())

    def _report(self, number: int) -> None:
        """The newest report; where a task makes it, the first visitor is told to come back."""
        answer = self._ask([200, 202], "GET", "/reports/sales?days=7")
        if b'"state"' not in answer.body:
            raise Failed("a report without a state")

    def _upload(self, number: int) -> None:
        """A picture is taken, and can be seen afterwards, whichever machine is asked for it."""
        product, content = self._product(number), picture(uuid.uuid4().bytes.hex().encode())
        boundary, token = uuid.uuid4().hex, secrets.token_hex(16)
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="photo"; filename="p.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        ).encode() + content + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
        jar = Jar(sessionid=self.session, csrftoken=token)
        sent = self._ask(
            [302], "POST", f"/products/{product}/photo", body,
            Content_Type=f"multipart/form-data; boundary={boundary}",
            X_CSRFToken=token, Referer=f"https://{self.door.hostname}/", **jar.headers(),
        )  # fmt: skip
        jar.take(sent)
        page = self._ask([200], "GET", f"/products/{product}/", **jar.headers()).body.decode(errors="replace")
        shown = re.search(r'src="(/media/[^"]+)"', page)
        if not shown:
            raise Failed("an upload is not shown")
        if self._ask([200], "GET", shown[1]).body != content:
            raise Failed("an upload is not what was sent")

    @staticmethod
    def _product(number: int) -> str:
        return f"item-{number % PRODUCTS + 1:06d}"


@dataclass
class Report:
    """What became of a load; times in seconds, latencies in milliseconds."""

    seconds: float
    rate: float
    requests: int
    failed: int
    failures: dict[str, dict[str, int]]  # kind of failure -> second -> how many
    latency_ms: dict[str, float]
    longest_gap: float  # without a success
    orders: int = 0
    lost: int = 0
    doubled: int = 0
    unconfirmed: int = 0
    confirmed_twice: int = 0
    astray: int = 0
    sent_again: int | None = None
    ran_again: int | None = None
    repeated: int = 0  # orders that were sent again under their key, and answered
    climbs: list[dict] = field(default_factory=list)  # of a rehearsal: from, to, expected, measured
    marks: list[dict] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether every acknowledged order is there, and confirmed by its task, exactly once."""
        return not self.broken

    @property
    def broken(self) -> str:
        """The sentence for orders that are not there or not confirmed exactly once; empty when all are."""
        counts = {
            "acknowledged orders are lost": self.lost,
            "acknowledged orders are doubled": self.doubled,
            "acknowledged orders were never confirmed": self.unconfirmed,
            "acknowledged orders were confirmed twice": self.confirmed_twice,
            "pieces are neither in stock nor sold, or both: an order was applied twice, or in part": self.astray,
        }
        return ", ".join(f"{number} {what}" for what, number in counts.items() if number)


@dataclass(frozen=True)
class Count:
    """What the site's own database says of a ledger: orders that are not there exactly once, or not confirmed so.

    `astray` is by how many pieces stock and sales together differ from before. How many tasks were sent again and ran
    again is no fault; None when the release does not tell.
    """

    lost: int = 0
    doubled: int = 0
    unconfirmed: int = 0
    confirmed_twice: int = 0
    astray: int = 0
    sent_again: int | None = None
    ran_again: int | None = None


def percentile(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile of ordered values; 0 for none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def longest_gap(visits: Iterable[Visit], end: float, begin: float = 0.0) -> float:
    """The longest time in which no visit ended well, between two moments (seconds from the start)."""
    ends = sorted(visit.due + visit.seconds for visit in visits if not visit.failure)
    edges = [begin, *(one for one in ends if begin <= one <= end), end]
    return max(after - before for before, after in zip(edges, edges[1:], strict=False))


def report(traffic: Traffic, count: Callable[[Path], Count]) -> Report:
    """Sum up a load that has stopped; `count` judges the ledger."""
    failures: dict[str, Counter[str]] = {}
    for visit in traffic.visits:
        if visit.failure:
            failures.setdefault(f"{visit.kind}: {visit.failure}", Counter())[str(int(visit.due))] += 1
    latencies = sorted(1000 * visit.seconds for visit in traffic.visits if not visit.failure)
    counted = count(traffic.ledger)
    return Report(
        seconds=round(traffic.seconds, 1),
        rate=traffic.rate,
        requests=len(traffic.visits),
        failed=sum(1 for visit in traffic.visits if visit.failure),
        failures={kind: dict(seconds) for kind, seconds in failures.items()},
        latency_ms={
            name: round(percentile(latencies, share), 1)
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
        },
        longest_gap=round(longest_gap(traffic.visits, traffic.seconds), 2),
        orders=len(traffic.acknowledged),
        **asdict(counted),
        repeated=sum(1 for visit in traffic.visits if visit.kind == "again" and not visit.failure),
        marks=[asdict(mark) for mark in traffic.marks],
    )
