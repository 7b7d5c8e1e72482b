"""What in the role's settings cannot work, each as a sentence that says what to do."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
SERVER_NAME = re.compile(r"(\*\.)?" + HOST.pattern)
URL_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
PATH = re.compile(r"/[A-Za-z0-9._/@~+-]+")
BALANCE = re.compile(r"[a-z0-9][A-Za-z0-9_(),.-]*( [A-Za-z0-9_(),.-]+)*")
BACKEND_KEYS = {"name", "address", "port", "weight"}
POSTGRES_KEYS = {"servers", "primary_port", "replica_port", "ca", "user", "lag_seconds"}
POSTGRES_SERVER_KEYS = {"name", "address", "port", "verify_name"}
LIMIT_KEYS = {"path_prefix", "requests", "seconds", "methods"}
LIMITS = 3  # as many counters as HAProxy keeps per request
MOST_CONNECTIONS = 150_000  # six file descriptors each, of the 1048576 that a process may have
# A connection's two buffers, its TLS session, and what HTTP/2 adds.
KB_PER_CONNECTION = 100
OWN_MB = 50


def whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_network(value: Any) -> bool:
    try:
        ipaddress.ip_network(str(value), strict=False)
    except ValueError:
        return False
    return True


def is_address(value: Any) -> bool:
    try:
        ipaddress.ip_interface(str(value))
    except ValueError:
        return False
    return True


def unknown(item: dict[str, Any], known: set[str], where: str) -> Iterator[str]:
    for key in sorted(set(item) - known):
        yield f"{where} has the unknown key {key}; it knows {', '.join(sorted(known))}."


def names(settings: dict[str, Any]) -> Iterator[str]:
    if not NAME.fullmatch(str(settings["name"])):
        yield (
            f"haproxy_name is {settings['name']}. Use small letters, digits and dashes, at most 32 of them, "
            "a letter first."
        )
    ports = [port for key, port in settings["ports"].items() if port or key != "stats"]
    if not all(whole(port, 1, 65535) for port in ports) or len(set(ports)) < len(ports):
        yield f"The ports are {settings['ports']}. Give each a number of its own from 1 to 65535; stats may be 0, none."
    for name, value in settings["seconds"].items():
        if not whole(value, 1, 86400):
            yield f"{name} is {value}. It is a whole number from 1 to 86400."


def site(settings: dict[str, Any]) -> Iterator[str]:
    listed = settings["server_names"]
    if not listed or not all(SERVER_NAME.fullmatch(str(name)) for name in listed):
        yield f"haproxy_server_names is {listed}. List the host names of the site, without ports."
    if settings["tls"] == "letsencrypt":
        if any(str(name).startswith("*") or is_address(name) for name in listed):
            yield (
                f"haproxy_server_names, {', '.join(listed)}, has an address or a wildcard, which the HTTP challenge "
                "cannot prove. Take it out, or set haproxy_tls: files."
            )
    elif not all(settings["tls_files"]):
        yield (
            f"haproxy_tls is {settings['tls']}, and haproxy_tls_certificate or haproxy_tls_key is empty. "
            "Set both to paths."
        )
    elif settings["tls"] == "files":
        for path in settings["tls_files"]:
            if not os.path.isfile(path):
                yield (
                    f"haproxy_tls is files, and {path} is not a file on the controller. Correct haproxy_tls_certificate "
                    "or haproxy_tls_key."
                )
    for address in settings["addresses"]:
        if not is_address(address) or "/" in str(address):
            yield f"haproxy_addresses has {address}, which is not an address of a host."
    for name in ("health_host", "backend_name"):
        if not HOST.fullmatch(str(settings[name])):
            yield f"haproxy_{name} is {settings[name]}. Set it to a host name."
    if not URL_PATH.fullmatch(str(settings["health_path"])):
        yield f"haproxy_health_path is {settings['health_path']}. Set it to a path without a query, /readyz say."
    if not BALANCE.fullmatch(str(settings["balance"])):
        yield f"haproxy_balance is {settings['balance']}. Name one of HAProxy's ways, leastconn say."
    if settings["backend_tls"] and not PATH.fullmatch(str(settings["backend_ca"])):
        yield f"haproxy_backend_tls is on, and haproxy_backend_ca is {settings['backend_ca']}. Set it to the CA's path."
    for name, networks in settings["networks"].items():
        for network in networks:
            if not is_network(network):
                yield f"{name} has {network}, which is not an address or network."


def backends(settings: dict[str, Any]) -> Iterator[str]:
    if not settings["backends"]:
        yield "haproxy_backends is empty. List the web servers, each with name, address and port."
    yield from listed_servers("haproxy_backends", settings["backends"], BACKEND_KEYS, {"name", "address", "port"})


def listed_servers(listed_in: str, servers: list[dict[str, Any]], known: set[str], needed: set[str]) -> Iterator[str]:
    seen: dict[str, set[Any]] = {"name": set(), "place": set()}
    for number, server in enumerate(servers, 1):
        where = f"{listed_in}, entry {number},"
        yield from unknown(server, known, where)
        missing = sorted(needed - set(server))
        if missing:
            yield f"{where} has no {missing[0]}."
            continue
        port = server.get("port", 5432)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", str(server["name"])):
            yield f"{where} has the name {server['name']}. Use letters, digits and _.-"
        if not is_address(server["address"]) and not HOST.fullmatch(str(server["address"])):
            yield f"{where} has the address {server['address']}, which is neither an address nor a host name."
        if not whole(port, 1, 65535):
            yield f"{where} has the port {port}; a port is a number from 1 to 65535."
        if not whole(server.get("weight", 100), 1, 256):
            yield f"{where} has the weight {server['weight']}; it is a number from 1 to 256. To take it out, drain it."
        for what, value in (("name", server["name"]), ("place", (server["address"], port))):
            if value in seen[what]:
                yield f"{where} is the second with the {what} {value}. Take one out."
            seen[what].add(value)


def limits(settings: dict[str, Any]) -> Iterator[str]:
    listed = settings["rate_limits"]
    if len(listed) > LIMITS:
        yield f"haproxy_rate_limits has {len(listed)} entries; HAProxy counts at most {LIMITS} for one request."
    for number, limit in enumerate(listed, 1):
        where = f"haproxy_rate_limits, entry {number},"
        yield from unknown(limit, LIMIT_KEYS, where)
        for key, high in (("requests", 10_000_000), ("seconds", 86400)):
            if not whole(limit.get(key), 1, high):
                yield f"{where} has the {key} {limit.get(key)}; it is a whole number of 1 or more."
        prefix = str(limit.get("path_prefix", "/"))
        if not URL_PATH.fullmatch(prefix):
            yield f"{where} has the path_prefix {prefix}. It begins with a slash, and has letters, digits and ._~/- only."
        elif "path_prefix" in limit and settings["health_path"].startswith(prefix) and prefix.strip("/"):
            yield (
                f"{where} is for {prefix}, which is what health checks ask ({settings['health_path']}); they are never "
                "limited. Give it another path_prefix."
            )
        methods = limit.get("methods", ["GET"])
        if not isinstance(methods, list) or not methods or not all(re.fullmatch("[A-Z]+", str(m)) for m in methods):
            yield f"{where} has the methods {methods}. They are a list of capital words, [POST] say."


def postgres(settings: dict[str, Any]) -> Iterator[str]:
    asked = settings["postgres"]
    yield from unknown(asked, POSTGRES_KEYS, "haproxy_postgres")
    if settings["sections"]:
        yield "haproxy_postgres and haproxy_sections are both set, and an instance is one thing. Empty one of them."
    if not all(PATH.fullmatch(str(path)) for path in (*settings["tls_files"], asked.get("ca", ""))):
        yield (
            "haproxy_postgres needs haproxy_tls_certificate, haproxy_tls_key and its ca, by which servers and HAProxy know "
            "each other. Set all three to paths on the host."
        )
    if settings["tls"] != "internal":
        yield f"haproxy_postgres needs haproxy_tls: internal, found {settings['tls']}. Leave haproxy_tls alone."
    ports = [asked.get("primary_port"), *([asked["replica_port"]] if asked.get("replica_port") else [])]
    if not all(whole(port, 1, 65535) for port in ports) or len({*ports, settings["ports"]["stats"]}) <= len(ports):
        yield f"haproxy_postgres has the ports {ports}, beside {settings['ports']['stats']} for statistics. Give each a number of its own."
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", str(asked.get("user", "haproxy"))):
        yield f"haproxy_postgres has the user {asked['user']}. Use small letters, digits, hyphens and underscores."
    if not whole(asked.get("lag_seconds", 5), 1, 3600):
        yield f"haproxy_postgres has lag_seconds {asked['lag_seconds']}. It is a whole number from 1 to 3600."
    if not asked.get("servers"):
        yield "haproxy_postgres has no servers. List them, each with name and address."
    yield from listed_servers(
        "haproxy_postgres.servers", asked.get("servers") or [], POSTGRES_SERVER_KEYS, {"name", "address"}
    )
    for server in asked.get("servers") or []:
        name = server.get("verify_name", server.get("name", "x"))
        if not HOST.fullmatch(str(name)):
            yield f"haproxy_postgres.servers has {name}, which no certificate can carry. Give it a verify_name."
        if server.get("name") == "primary":
            yield "haproxy_postgres.servers has the name primary, which is where reads go while there is no replica. Choose another."


def memory(settings: dict[str, Any]) -> Iterator[str]:
    if not whole(settings["max_connections"], 10, MOST_CONNECTIONS):
        yield (
            f"haproxy_max_connections is {settings['max_connections']}. It is a number from 10 to {MOST_CONNECTIONS}."
        )
    elif settings["memory_mb"]:
        needed = settings["max_connections"] * KB_PER_CONNECTION // 1024 + OWN_MB
        if needed > settings["memory_mb"]:
            yield (
                f"haproxy_max_connections, {settings['max_connections']}, can take {needed} MB, more than "
                f"haproxy_memory_mb, {settings['memory_mb']}. Lower the one or raise the other."
            )


def haproxy_problems(settings: dict[str, Any]) -> list[str]:
    """Every problem of a role's settings; empty when they can work."""
    checks = [names, memory]
    checks += [postgres] if settings["postgres"] else [] if settings["sections"] else [site, backends, limits]
    return [sentence for check in checks for sentence in check(settings)]


def haproxy_postgres_startup(user: str) -> str:
    """The first message of a connection to the database postgres, as hexadecimal digits; wants no encryption of its own.

    Source: "Message Formats" in PostgreSQL's documentation, protocol 3.0.
    """
    words = b"user\0" + user.encode() + b"\0database\0postgres\0application_name\0haproxy\0\0"
    return (struct.pack("!ii", len(words) + 8, 196608) + words).hex()


def haproxy_postgres_query(sql: str) -> str:
    """A simple query and the goodbye after it, as hexadecimal digits."""
    words = sql.encode() + b"\0"
    return (b"Q" + struct.pack("!i", len(words) + 4) + words + b"X" + struct.pack("!i", 4)).hex()


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "haproxy_problems": haproxy_problems,
            "haproxy_postgres_startup": haproxy_postgres_startup,
            "haproxy_postgres_query": haproxy_postgres_query,
        }
