"""Filters of the role pgbouncer: what is refused, how large pools are, and values as pgbouncer.ini takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
DATABASE = re.compile(r"[A-Za-z0-9_.-]{1,63}")
HOST = re.compile(r"/[\w./-]+|[A-Za-z0-9:][A-Za-z0-9:.-]*")
SYSTEM_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
BREAK = re.compile(r"[\r\n\0]")
AUTH = "_auth_"  # names of the role's own databases, one per server
MODES = ("transaction", "session", "statement")
MOST_PROCESSES = 64
# Settings with a variable of their own, and those that the role decides.
OWN = {
    "listen_addr": "pgbouncer_bind", "listen_port": "pgbouncer_port", "auth_user": "pgbouncer_auth_user",
    "auth_dbname": "pgbouncer_auth_database", "auth_file": "pgbouncer_auth_password",
    "client_tls_cert_file": "pgbouncer_tls_certificate", "client_tls_key_file": "pgbouncer_tls_key",
    "server_tls_ca_file": "pgbouncer_server_ca", "max_client_conn": "pgbouncer_max_clients",
    "max_prepared_statements": "pgbouncer_max_prepared_statements", "stats_users": "pgbouncer_stats_users",
    "default_pool_size": "pool_size in pgbouncer_databases", "pool_mode": "pool_mode in pgbouncer_databases",
    "max_db_connections": "pool_size in pgbouncer_databases",
}  # fmt: skip
FIXED = {
    "auth_type", "auth_hba_file", "auth_query", "admin_users", "unix_socket_dir", "so_reuseport", "peer_id", "pidfile",
    "logfile", "user", "client_tls_sslmode", "server_tls_sslmode", "conffile", "job_name", "service_name", "disable_pqexec",
    "reserve_pool_size", "min_pool_size", "autodb_idle_timeout",
}  # fmt: skip


def whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def server(database: dict[str, Any]) -> tuple[str, int]:
    return str(database["host"]), database.get("port") or 5432


def pgbouncer_pools(
    databases: list[dict[str, Any]], limit: Any, processes: Any, auth_database: str, connect_query: str
) -> list[dict[str, Any]]:
    """The databases of pgbouncer.ini with the size of each pool, of one process.

    Those for passwords come last, with one connection each; without them each database has one connection more.
    """
    servers = sorted({server(item) for item in databases}) if auth_database else []
    extra = 0 if auth_database else 1
    each = int(limit) // max(int(processes), 1) - len(servers) - extra * len(databases)
    given = [item["pool_size"] for item in databases if item.get("pool_size") is not None]
    silent = len(databases) - len(given)
    share = (each - sum(given)) // silent if silent else 0
    pools = []
    for item in databases:
        size = item["pool_size"] if item.get("pool_size") is not None else share
        auth = {"auth_dbname": f"{AUTH}{servers.index(server(item)) + 1}"} if auth_database else {}
        query = item["connect_query"] if item.get("connect_query") is not None else connect_query
        pools.append(
            {
                "name": item["name"], "host": item["host"], "port": server(item)[1],
                "dbname": item.get("dbname") or item["name"], "pool_size": size, "connections": size + extra,
                "pool_mode": item.get("pool_mode") or "transaction", "connect_query": query, **auth,
            }
        )  # fmt: skip
    for number, (host, port) in enumerate(servers, 1):
        pools.append(
            {
                "name": f"{AUTH}{number}", "host": host, "port": port, "dbname": auth_database, "pool_size": 1,
                "connections": 1, "pool_mode": "transaction", "connect_query": "",
            }
        )  # fmt: skip
    return pools


def instance(settings: dict[str, Any]) -> Iterator[str]:
    name = settings["name"]
    if not NAME.fullmatch(str(name)):
        yield f'pgbouncer_name is "{name}". Use at most 20 small letters, digits and hyphens, a letter first.'
    for key, low, high in (
        ("port", 1, 65535), ("processes", 1, MOST_PROCESSES), ("max_clients", 1, 30000), ("drain_seconds", 1, 3600),
        ("max_prepared_statements", 0, 100000), ("server_connections", 1, 100000),
    ):  # fmt: skip
        if not whole(settings[key], low, high):
            yield f"pgbouncer_{key} is {settings[key]}. It is a whole number from {low} to {high}."
    for address in settings["bind"]:
        if not re.fullmatch(r"\*|[A-Za-z0-9:.-]+", str(address)):
            yield f'pgbouncer_bind has "{address}", which is not an address.'
    if settings["bind"] and not (settings["certificate"] and settings["key"]):
        yield (
            f"pgbouncer_bind is {', '.join(map(str, settings['bind']))}, and pgbouncer_tls_certificate or pgbouncer_tls_key "
            "is empty. Set both to paths on the host, or empty pgbouncer_bind to serve sockets only."
        )
    for key in ("certificate", "key", "server_ca"):
        if settings[key] and not re.fullmatch(r"/[\w./@+-]+", str(settings[key])):
            yield f'The path "{settings[key]}" is not an absolute one of letters, digits and _./@+- only.'


def passwords(settings: dict[str, Any]) -> Iterator[str]:
    user, password = str(settings["auth_user"]), str(settings["auth_password"])
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", user) or user == "pgbouncer":
        yield (
            f'pgbouncer_auth_user is "{user}". Use letters, digits, dots, hyphens and underscores, and not pgbouncer, '
            "which is the administrator's name in PgBouncer's console."
        )
    if not password:
        yield "pgbouncer_auth_password is empty, and no server would let it in. Set it."
    if BREAK.search(password):
        yield "pgbouncer_auth_password has a line break in it. Take it out."
    if len(password.encode()) > 900:
        yield "pgbouncer_auth_password is longer than 900 bytes. Take a shorter one."
    for name in settings["stats_users"]:
        if not SYSTEM_USER.fullmatch(str(name)) or name in ("pgbouncer", user):
            yield f'pgbouncer_stats_users has "{name}". Name system users, other than pgbouncer and {user}.'


def databases(settings: dict[str, Any]) -> Iterator[str]:
    if not settings["databases"]:
        yield "pgbouncer_databases is empty. List the databases, each with name and host."
    seen = set()
    for item in settings["databases"]:
        where = f"pgbouncer_databases, {item['name']},"
        if not DATABASE.fullmatch(str(item["name"])):
            yield (
                f'pgbouncer_databases has the name "{item["name"]}". Use letters, digits, dots, hyphens and underscores; '
                "its name on the server goes to dbname."
            )
        if item["name"] == "pgbouncer" or str(item["name"]).startswith(AUTH):
            yield f"pgbouncer_databases has the name {item['name']}, which PgBouncer or this role uses itself. Choose another."
        if item["name"] in seen:
            yield f"pgbouncer_databases has the name {item['name']} twice. Take one out."
        seen.add(item["name"])
        if not HOST.fullmatch(str(item["host"])):
            yield f'{where} has the host "{item["host"]}", which is neither a host\'s name nor a folder. Give one.'
        if not whole(item.get("port") or 5432, 1, 65535):
            yield f"{where} has the port {item['port']}; a port is a number from 1 to 65535."
        if (item.get("pool_mode") or "transaction") not in MODES:
            yield f"{where} has the pool_mode {item['pool_mode']}. Use one of {', '.join(MODES)}."
        if item.get("pool_size") is not None and not whole(item["pool_size"], 1, 100000):
            yield f"{where} has the pool_size {item['pool_size']}; it is a whole number of 1 or more."
        for key in ("dbname", "connect_query"):
            if BREAK.search(str(item.get(key) or "")):
                yield f"{where} has a line break in its {key}. Write it on one line."
    if BREAK.search(str(settings["connect_query"])):
        yield "pgbouncer_connect_query has a line break in it. Write it on one line."
    if BREAK.search(str(settings["auth_database"])):
        yield "pgbouncer_auth_database has a line break in it. Take it out."
    if not settings["server_ca"] and any(not str(item["host"]).startswith("/") for item in settings["databases"]):
        yield (
            "pgbouncer_databases has servers that are reached over the network, and pgbouncer_server_ca is empty. Set it to "
            "the CA's path."
        )


def watch(settings: dict[str, Any]) -> Iterator[str]:
    watched = settings["watch"]
    if not watched:
        return
    known = {item["name"] for item in settings["databases"]}
    if not watched.get("databases"):
        yield f"pgbouncer_watch names no databases. List those of {', '.join(sorted(known))} that are the primary's."
    for key in ("databases", "replica_databases"):
        for name in watched.get(key) or []:
            if name not in known:
                yield f"pgbouncer_watch has {name} in {key}, and pgbouncer_databases has {', '.join(sorted(known))}. Name one of them."
    if not re.fullmatch(r"http://(127\.0\.0\.1|localhost):\d+/\S*", str(watched.get("url", ""))):
        yield (
            f"pgbouncer_watch has the url {watched.get('url')}. Give the one of HAProxy's statistics on this host, "
            "http://127.0.0.1:8405/;csv say."
        )
    if not whole(watched.get("pause_seconds") or 60, 5, 3600):
        yield f"pgbouncer_watch has pause_seconds {watched['pause_seconds']}. It is a whole number from 5 to 3600."


def sums(settings: dict[str, Any]) -> Iterator[str]:
    """Only asked when everything else is right: the sizes are numbers then."""
    processes, limit = settings["processes"], settings["server_connections"]
    pools = pgbouncer_pools(settings["databases"], limit, processes, settings["auth_database"], "")
    needed = sum(max(pool["connections"], 1) for pool in pools) * processes
    parts = " + ".join(f"{pool['name']} {pool['connections']}" for pool in pools)
    if any(pool["pool_size"] < 1 for pool in pools) or needed > limit:
        yield (
            f"the pools do not fit pgbouncer_server_connections, {limit}: {processes} processes x ({parts}) = {needed}, with at "
            "least one for each database. Lower pool_size or pgbouncer_processes, or raise pgbouncer_server_connections "
            "and the server's max_connections."
        )


def others(settings: dict[str, Any]) -> Iterator[str]:
    given = settings["settings"]
    for name in sorted(given):
        if name in OWN:
            yield f"pgbouncer_settings has {name}, which has a variable of its own. Use {OWN[name]}."
        elif name in FIXED:
            yield f"pgbouncer_settings has {name}, which this role decides. Take it out."
        elif not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
            yield f'pgbouncer_settings has "{name}". Names of settings are small letters, digits and underscores.'
        elif BREAK.search(pgbouncer_value(given[name])):
            yield f"pgbouncer_settings has a line break in {name}. Write it on one line."
    if settings["is_old"] and settings["max_prepared_statements"]:
        yield (
            f"pgbouncer_max_prepared_statements is {settings['max_prepared_statements']}, and Debian 12's PgBouncer (1.18) has "
            "none. Set it to 0 and have clients prepare nothing, or use Debian 13."
        )
    if settings["is_old"] and settings["auth_database"]:
        yield (
            f"pgbouncer_auth_database is {settings['auth_database']}, and Debian 12's PgBouncer (1.18) asks for passwords in "
            "the client's own database only. Set it to an empty string and make the function in each database."
        )


def pgbouncer_problems(settings: dict[str, Any]) -> list[str]:
    """Every problem of a role's settings; empty when they can work."""
    found = [sentence for check in (instance, passwords, databases, watch, others) for sentence in check(settings)]
    return found or list(sums(settings))


def pgbouncer_value(value: Any) -> str:
    """A setting's value: 1 and 0 for booleans, commas in a list."""
    if isinstance(value, bool):
        return str(int(value))
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def pgbouncer_quoted(value: Any) -> str:
    """A value of a database's line, always in quotes."""
    return "'" + str(value).replace("'", "''") + "'"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "pgbouncer_problems": pgbouncer_problems, "pgbouncer_pools": pgbouncer_pools,
            "pgbouncer_value": pgbouncer_value, "pgbouncer_quoted": pgbouncer_quoted,
        }  # fmt: skip
