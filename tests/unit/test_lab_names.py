"""Two labs on one machine have different names, networks and addresses; one lab keeps its own."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from lab import names

ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br-1\t000112C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


def test_two_checkouts_have_two_names() -> None:
    first, second = names.lab_name(Path("/home/ada/kit"), None), names.lab_name(Path("/home/bob/kit"), None)
    assert first != second
    assert first == names.lab_name(Path("/home/ada/kit"), None)


def test_a_folder_with_an_odd_name_gives_a_name_that_docker_takes() -> None:
    name = names.lab_name(Path("/home/ada/Große Leiter (2)"), None)
    assert names.lab_name(Path("/"), name) == name
    assert names.lab_name(Path("/"), f"{names.lab_name(Path('/'), None)}-test").endswith("-test")


@pytest.mark.parametrize("wrong", ["Shop", "-x", "a b", "shared", "molecule", "x" * 60, "../x"])
def test_a_name_that_would_not_do_is_refused_with_a_sentence(wrong: str) -> None:
    with pytest.raises(ValueError, match="STEPLADDER_LAB"):
        names.lab_name(Path("/"), wrong)


def test_subnet_is_stable_free_and_not_the_scenarios() -> None:
    first = names.free_subnet("one", [])
    assert first == names.free_subnet("one", [])
    assert first.subnet_of(names.POOL)
    other = names.free_subnet("one", [first])
    assert not other.overlaps(first)
    everything_else = [network for network in names.POOL.subnets(new_prefix=24) if network != names.MOLECULE_SUBNET]
    with pytest.raises(ValueError, match="No /24"):
        names.free_subnet("one", everything_else)


def test_a_wide_network_blocks_all_that_it_covers() -> None:
    wide = ipaddress.ip_network("198.18.0.0/16")
    assert not names.free_subnet("one", [wide]).overlaps(wide)


def test_hosts_keep_their_addresses_when_others_come_between_them() -> None:
    subnet = ipaddress.ip_network("198.18.7.0/24")
    first = names.assign_addresses(subnet, ["web1", "db1"], {})
    assert first == {"web1": "198.18.7.10", "db1": "198.18.7.11"}
    grown = names.assign_addresses(subnet, ["web1", "cache1", "db1"], first)
    assert grown == {"web1": "198.18.7.10", "cache1": "198.18.7.12", "db1": "198.18.7.11"}


def test_addresses_of_another_subnet_are_given_up() -> None:
    subnet = ipaddress.ip_network("198.18.8.0/24")
    assert names.assign_addresses(subnet, ["web1"], {"web1": "198.18.7.10"}) == {"web1": "198.18.8.10"}


def test_networks_are_read_from_the_kernels_routes() -> None:
    assert [str(network) for network in names.routes_networks(ROUTES)] == ["192.0.2.0/24", "198.18.1.0/24"]
