"""Read the firewall's data: say what is wrong with it, and turn it into rules for the template."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

KEYS = {"port", "proto", "from", "comment"}
COMMENT_BYTES = 100
# Long enough for a new SSH connection on a slow host; a rule set that locks out stays no longer than this.
CONFIRM_SECONDS = range(5, 3601)
INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")


def _ports(value: Any) -> list[str]:
    """Ports as nftables writes them; ValueError names the one that is none."""
    found = []
    for item in value if isinstance(value, list) else [value]:
        text = str(item)
        first, dash, last = text.partition("-")
        ends = [first, last] if dash else [first]
        numbers = [int(end) for end in ends if re.fullmatch(r"[0-9]{1,5}", end)]
        if len(numbers) != len(ends) or isinstance(item, bool) or not all(1 <= n <= 65535 for n in numbers):
            raise ValueError(
                f'the port {text}; a port is a number from 1 to 65535, a range such as "8000-8010", or a list'
            )
        if dash and numbers[0] >= numbers[1]:
            raise ValueError(f"the port range {text}, whose end is not after its start")
        found.append("-".join(str(number) for number in numbers))
    if not found:
        raise ValueError("an empty list of ports; leave the entry out, or name a port")
    return found


def _network(value: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """An address or network; ValueError says what it is not."""
    text = str(value)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        fitting = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"the source {text}, which is not an address or network; write 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
        )
    raise ValueError(f"the source {text}, which has bits after its network part; write {fitting}")


def _families(sources: list[Any]) -> dict[str, list[str]]:
    """Sources by IP version, as an nftables set takes them."""
    networks = [_network(source) for source in sources]
    return {
        "v4": [str(net) for net in ipaddress.collapse_addresses(net for net in networks if net.version == 4)],
        "v6": [str(net) for net in ipaddress.collapse_addresses(net for net in networks if net.version == 6)],
    }


def _entry_problem(entry: dict[str, Any]) -> str:
    unknown = sorted(str(key) for key in set(entry) - KEYS)
    if unknown:
        return f"the unknown key {', '.join(unknown)}; it knows port, proto, from and comment"
    proto = entry.get("proto", "tcp")
    if proto not in ("tcp", "udp", "vrrp"):
        return f"the proto {proto}; it is tcp, udp or vrrp"
    if proto == "vrrp" and ("port" in entry or "from" not in entry):
        return "the proto vrrp, which has no port and needs from, the hosts that share an address with this one"
    if proto != "vrrp" and "port" not in entry:
        return "no port; name the one to open"
    comment = str(entry.get("comment", ""))
    if '"' in comment or "\\" in comment or not comment.isprintable() or len(comment.encode()) > COMMENT_BYTES:
        return f"a comment with a quote, a backslash, a line break or more than {COMMENT_BYTES} bytes, which nftables refuses"
    if not isinstance(entry.get("from", []), list):
        return f"from: {entry['from']}; it is a list, [{entry['from']}]"
    try:
        if proto != "vrrp":
            _ports(entry["port"])
        _families(entry.get("from", []))
    except ValueError as error:
        return str(error)
    return ""


def firewall_problems(
    allow: list[dict[str, Any]], ssh_port: int, ssh_from: list[str], interfaces: list[str], seconds: int
) -> list[str]:
    """One sentence per thing that is wrong with the data; empty when nothing is."""
    problems = []
    for number, entry in enumerate(allow, 1):
        problem = _entry_problem(entry)
        if problem:
            name = f" ({entry['comment']})" if entry.get("comment") else ""
            problems.append(f"firewall_allow, entry {number}{name}, has {problem}.")
    for problem, value in ((_ports, ssh_port), (_families, ssh_from)):
        try:
            problem(value)
        except ValueError as error:
            problems.append(f"{'firewall_ssh_port' if problem is _ports else 'firewall_ssh_from'} has {error}.")
    problems += [
        f"firewall_trusted_interfaces has {name!r}, which is not an interface's name."
        for name in interfaces
        if not INTERFACE.fullmatch(name)
    ]
    if seconds not in CONFIRM_SECONDS:
        problems.append(
            f"firewall_confirm_seconds is {seconds}; a host cannot wait for a confirmation shorter than "
            f"{CONFIRM_SECONDS.start} seconds, nor should it longer than {CONFIRM_SECONDS.stop - 1}."
        )
    return problems


def firewall_rules(allow: list[dict[str, Any]], ssh_port: int, ssh_from: list[str]) -> list[dict[str, Any]]:
    """The accepting rules in order, SSH first: name, proto, ports, everyone, v4, v6, comment."""
    ssh = {"port": ssh_port, "comment": "SSH", **({"from": ssh_from} if ssh_from else {})}
    return [
        {
            "name": f"from_{number}" if number else "ssh_from",
            "proto": entry.get("proto", "tcp"),
            "ports": _ports(entry["port"]) if "port" in entry else [],
            "everyone": "from" not in entry,
            "comment": str(entry.get("comment", "")),
            **_families(entry.get("from", [])),
        }
        for number, entry in enumerate([ssh, *allow])
    ]


class FilterModule:
    """The firewall's filters."""

    def filters(self) -> dict[str, Any]:
        return {"firewall_problems": firewall_problems, "firewall_rules": firewall_rules}
