"""What counts as the application's error, and when there are too many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit import load_plugin

watch = load_plugin("roles/nginx/library/nginx_watch.py")


def line(status: int, upstream: int | None = 200, uri: str = "/") -> bytes:
    return json.dumps({"method": "GET", "uri": uri, "status": status, "upstream_status": upstream}).encode() + b"\n"


class Minutes:
    """A clock that goes on by its sleeps, and writes to the log meanwhile."""

    def __init__(self, log: Path, written: dict[int, bytes]) -> None:
        self.log, self.written, self.now, self.steps = log, written, 0.0, 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.steps += 1
        with self.log.open("ab") as stream:
            stream.write(self.written.get(self.steps, b""))

    def clock(self) -> float:
        return self.now


def seen(tmp_path: Path, written: dict[int, bytes], **given: float) -> dict:
    log = tmp_path / "access.log"
    log.write_bytes(line(500, 500) * 50)  # before anyone watched
    time = Minutes(log, written)
    wanted = {"log": str(log), "seconds": 10, "errors": 0.1, "least": 3, **given}
    return watch.watch(wanted, time.sleep, time.clock) | {"time": time.now}


def test_only_what_comes_while_it_watches_is_counted(tmp_path: Path) -> None:
    found = seen(tmp_path, {2: line(200) * 5})
    assert (found["requests"], found["errors"], found["over"], found["time"]) == (5, 0, False, 10)


@pytest.mark.parametrize(
    ("entry", "asked", "failed"),
    [(line(200), True, False), (line(404, 404), True, False), (line(500, 500), True, True), (line(502, 502), True, True),
     (line(504, None), True, True), (line(200, None), False, False), (line(503, None), False, False),
     (b"not json\n", False, False)],
)  # fmt: skip
def test_errors_are_those_of_the_application(entry: bytes, asked: bool, failed: bool) -> None:
    assert watch.judge(entry)[:2] == (asked, failed)


def test_too_many_errors_end_it_after_half_the_time(tmp_path: Path) -> None:
    found = seen(tmp_path, {1: line(500, 500, "/cart") * 4 + line(200) * 4})
    assert found["over"] and found["time"] == 5
    assert found["examples"] == ["GET /cart: 500"]


def test_few_errors_among_many_requests_are_borne(tmp_path: Path) -> None:
    assert not seen(tmp_path, {1: line(500, 500) * 4 + line(200) * 96})["over"]


def test_two_errors_are_no_trend(tmp_path: Path) -> None:
    assert not seen(tmp_path, {1: line(500, 500) * 2})["over"]


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    whole = line(500, 500)
    assert seen(tmp_path, {1: whole[:20], 3: whole[20:]})["errors"] == 1


def test_rotation_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"")
    follower = watch.Follower(str(log))
    log.rename(tmp_path / "access.log.1")
    with (tmp_path / "access.log.1").open("ab") as stream:
        stream.write(line(200))
    log.write_bytes(line(500, 500))
    assert len(follower.lines()) == 2
