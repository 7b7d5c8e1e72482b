"""Numbers of the benchmark come from reports that are whole, and calls are counted where they are made."""

from __future__ import annotations

import pytest

from lab import bench
from lab.machine import MachineError

WRK = "  1000 requests in 8.00s, 1.2MB read\nRequests/sec:    125.31\nTransfer/sec:    150KB\n"
PGBENCH = "latency average = 6.1 ms\ninitial connection time = 9 ms\ntps = 1311.47 (without initial connection time)\n"


def test_rates_are_read_from_the_reports() -> None:
    assert bench.wrk_rate(WRK) == 125.31
    assert bench.pgbench_rate(PGBENCH) == 1311.47


@pytest.mark.parametrize("report", ["", f"{WRK}  Non-2xx or 3xx responses: 12\n"])
def test_a_rate_of_refusals_is_no_rate(report: str) -> None:
    with pytest.raises(MachineError, match="cannot be used"):
        bench.wrk_rate(report)


def test_both_sides_get_the_same_number_of_turns_in_turns() -> None:
    order: list[str] = []
    first, second = iter([1.0, 3.0, 2.0, 1.0]), iter([5.0, 4.0, 1.0, 2.0])

    def turn(name: str, values) -> float:
        order.append(name)
        return next(values)

    assert bench.take_turns(lambda: turn("a", first), lambda: turn("b", second)) == (3.0, 5.0)
    assert order == ["a", "b"] * 4
