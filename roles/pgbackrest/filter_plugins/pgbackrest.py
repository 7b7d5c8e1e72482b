"""What a host is to the backups, worked out of what all hosts are given alike."""

from __future__ import annotations

from typing import Any


def pgbackrest_plan(
    stanzas: list[dict[str, Any]], host_role: str, address: str, repository_host: str
) -> dict[str, Any]:
    """The part of a host in the backups.

    members: the stanzas with their hosts as this host sees them: `address` is empty for its own database. A database's host has its
    own only; a stanza's single host is its own whatever it is called.
    remote: the addresses of databases on other hosts, sorted.
    serves: whether another host asks this one for anything.
    admitted: who may ask this host's server, and about which stanzas, by address.
    """
    has_data = host_role != "repository"
    members = []
    for stanza in stanzas:
        hosts = []
        for host in stanza["hosts"]:
            given = host.get("address") or ""
            single = host_role == "database" and len(stanza["hosts"]) == 1
            here = has_data and (given in ("", address) or single)
            if here or host_role != "database":
                hosts.append(
                    {
                        "address": "" if here else given,
                        "port": int(host.get("port") or 5432),
                        "path": host["path"],
                        "socket": host.get("socket") or "/var/run/postgresql",
                    }
                )
        members.append({"name": stanza["name"], "hosts": hosts})
    remote = sorted({host["address"] for stanza in members for host in stanza["hosts"] if host["address"]})
    admitted = {
        other: [stanza["name"] for stanza in members if other in [host["address"] for host in stanza["hosts"]]]
        for other in remote
    }
    if host_role == "database":
        admitted[repository_host] = [stanza["name"] for stanza in stanzas]
    return {"members": members, "remote": remote, "serves": host_role != "both" or bool(remote), "admitted": admitted}


class FilterModule:
    def filters(self):
        return {"pgbackrest_plan": pgbackrest_plan}
