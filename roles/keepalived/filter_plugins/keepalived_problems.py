"""What in the role's settings cannot work, each as a sentence that says what to do."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
COMMAND = re.compile(r"/[^\"\\\n]*")


def host(value: Any) -> Any:
    """The address of a host, or None."""
    try:
        return ipaddress.ip_address(str(value))
    except ValueError:
        return None


def names(settings: dict[str, Any]) -> Iterator[str]:
    if not NAME.fullmatch(str(settings["name"])):
        yield (
            f"keepalived_name is {settings['name']}. Use small letters, digits and dashes, at most 32 of them, "
            "a letter first."
        )
    if not INTERFACE.fullmatch(str(settings["interface"])):
        yield f"keepalived_interface is {settings['interface']!r}. Name a network interface, eth0 say."
    if not USER.fullmatch(str(settings["script_user"])):
        yield f"keepalived_script_user is {settings['script_user']!r}. Name a user of the host."
    for name, value in settings["commands"].items():
        if value and not COMMAND.fullmatch(str(value)):
            yield f"{name} is {value}. Give the full path, without quotation marks and backslashes."
    for name, (value, low, high) in settings["numbers"].items():
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            yield f"{name} is {value}. It is a whole number from {low} to {high}."


def addresses(settings: dict[str, Any]) -> Iterator[str]:
    source = host(settings["source"])
    if source is None:
        yield f"keepalived_source is {settings['source']!r}. Set it to this host's own address."
    peers = [host(peer) for peer in settings["peers"]]
    if not peers or None in peers:
        yield f"keepalived_peers is {settings['peers']}. List the other hosts' own addresses."
    if source in peers and source is not None:
        yield f"keepalived_peers has {source}, which is this host's own address. List only the others."
    if not settings["addresses"]:
        yield "keepalived_addresses is empty. List the addresses that move, 192.0.2.10/24 say."
    versions = {one.version for one in [source, *peers] if one is not None}
    for address in settings["addresses"]:
        try:
            wanted = ipaddress.ip_interface(str(address))
        except ValueError:
            wanted = None
        if wanted is None or "/" not in str(address):
            yield f"keepalived_addresses has {address}. Give an address with the bits of its network, 192.0.2.10/24 say."
            continue
        versions.add(wanted.version)
        if wanted.ip in (source, *peers):
            yield f"keepalived_addresses has {address}, which is a host's own address. Take one that nobody has."
    if len(versions) > 1:
        yield "Some of the addresses are IPv4 and some IPv6. Make an instance for each."


def keepalived_problems(settings: dict[str, Any]) -> list[str]:
    """Every problem of a role's settings; empty when they can work."""
    return [sentence for check in (names, addresses) for sentence in check(settings)]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"keepalived_problems": keepalived_problems}
