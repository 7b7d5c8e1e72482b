"""Names, labels and addresses: what keeps two labs on one machine apart."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path

LAB_LABEL = "stepladder.lab"
INPUTS_LABEL = "stepladder.inputs"
HOST_LABEL = "stepladder.host"
DEBIAN_LABEL = "stepladder.debian"
SHARED = "shared"  # the label's value on what all labs of a machine use: images, caches
MOLECULE = "molecule"

# Set aside for benchmarks between networks (RFC 2544): no real host is there.
POOL = ipaddress.ip_network("198.18.0.0/15")
MOLECULE_NETWORK = "stepladder-molecule"
MOLECULE_SUBNET = ipaddress.ip_network("198.18.1.0/24")
FIRST_HOST = 10  # the addresses below belong to the gateway and the cache

Network = ipaddress.IPv4Network


def lab_name(root: Path, setting: str | None) -> str:
    """The lab's name: the setting, or one that only this checkout has.

    Raises ValueError for a setting that would not do as the name of a network and of containers.
    """
    if setting:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,47}", setting) or setting in (SHARED, MOLECULE):
            raise ValueError(
                f"STEPLADDER_LAB={setting!r} will not do as a lab's name: use small letters, digits and dashes "
                f"(at most 48), not {SHARED} or {MOLECULE}."
            )
        return setting
    folder = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:20] or "checkout"
    return f"ladder-{folder}-{hashlib.sha256(str(root).encode()).hexdigest()[:6]}"


def container_name(lab: str, host: str) -> str:
    return f"{lab}-{host}"


def free_subnet(lab: str, taken: Iterable[Network]) -> Network:
    """A /24 of the pool that overlaps nothing taken; the same lab gets the same one when it can.

    Raises ValueError when the pool is used up.
    """
    blocked = [MOLECULE_SUBNET, *taken]
    candidates = list(POOL.subnets(new_prefix=24))
    start = int(hashlib.sha256(lab.encode()).hexdigest(), 16) % len(candidates)
    for candidate in candidates[start:] + candidates[:start]:
        if not any(candidate.overlaps(network) for network in blocked):
            return candidate
    raise ValueError(f"No /24 of {POOL} is free for the lab {lab}.")


def assign_addresses(subnet: Network, hosts: Iterable[str], known: dict[str, str]) -> dict[str, str]:
    """Each host's address: the one it had, or the next free one in the inventory's order."""
    inside = {host: address for host, address in known.items() if ipaddress.ip_address(address) in subnet}
    used = set(inside.values())
    free = (str(address) for address in list(subnet.hosts())[FIRST_HOST - 1 :] if str(address) not in used)
    return {host: inside.get(host) or next(free) for host in hosts}


def routes_networks(routes: str) -> list[Network]:
    """The networks in the text of /proc/net/route (little-endian hexadecimal there), without the default route."""
    networks = []
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] == "00000000":
            continue
        address, mask = (ipaddress.IPv4Address(bytes.fromhex(field)[::-1]) for field in (fields[1], fields[7]))
        networks.append(ipaddress.ip_network(f"{address}/{mask}", strict=False))
    return networks
