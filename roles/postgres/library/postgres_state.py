#!/usr/bin/python
"""One read-only look at an instance: what is there, what it runs with, and what differs from what is wanted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_state
short_description: What a PostgreSQL instance is, and what in it differs from what is wanted
description:
  - Looks at the instance's directories, and asks the server over its socket as the system user postgres.
  - Changes nothing. Passwords are compared with the stored verifiers and are neither returned nor sent to the server.
options:
  version:
    description: Major version wanted.
    type: str
    required: true
  cluster:
    description: The instance's name.
    type: str
    required: true
  files:
    description: Files that the server has to be able to read (certificate, key, CA).
    type: list
    elements: str
    default: []
  drop_in:
    description: The systemd drop-in; when it is newer than the server, a restart is pending.
    type: str
    default: ""
  wanted:
    description: What should be in it, as base64 of JSON with the keys roles, databases, privileges and replication.
    type: str
    default: ""
  patience:
    description: Seconds to wait until a replica that does not receive anything does.
    type: int
    default: 0
author: Stepladder
"""

import base64
import glob
import json
import os

from ansible.module_utils import postgres_replication as replication
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_scram import matches
from ansible.module_utils.postgres_server import (
    ETC,
    LIB,
    Refused,
    Server,
    as_postgres,
    literal,
    manager,
    places,
    read,
    start_mode,
)
from ansible.module_utils.postgres_upgrading import summary

FLAGS = {
    "SUPERUSER": "rolsuper", "CREATEDB": "rolcreatedb", "CREATEROLE": "rolcreaterole", "INHERIT": "rolinherit",
    "LOGIN": "rolcanlogin", "REPLICATION": "rolreplication", "BYPASSRLS": "rolbypassrls",
}  # fmt: skip
ALL = {
    "database": ["CREATE", "CONNECT", "TEMPORARY"],
    "schema": ["USAGE", "CREATE"],
    "table": ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"],
    "sequence": ["USAGE", "SELECT", "UPDATE"],
}
SERVER = """
select json_build_object(
  'server_version', current_setting('server_version'),
  'in_recovery', pg_is_in_recovery(),
  'checksums', current_setting('data_checksums') = 'on',
  'started', extract(epoch from pg_postmaster_start_time()),
  'loaded', extract(epoch from pg_conf_load_time()),
  'pending_restart', (select coalesce(json_agg(name order by name), '[]') from pg_settings where pending_restart),
  'roles', (select json_object_agg(rolname, json_build_object(
      'password', rolpassword, 'connection_limit', rolconnlimit,
      'rolsuper', rolsuper, 'rolcreatedb', rolcreatedb, 'rolcreaterole', rolcreaterole, 'rolinherit', rolinherit,
      'rolcanlogin', rolcanlogin, 'rolreplication', rolreplication, 'rolbypassrls', rolbypassrls,
      'settings', (select coalesce(json_agg(s), '[]') from pg_db_role_setting c, unnest(c.setconfig) s
                   where c.setrole = a.oid and c.setdatabase = 0),
      'member_of', (select coalesce(json_agg(g.rolname), '[]') from pg_auth_members m join pg_roles g on g.oid = m.roleid
                    where m.member = a.oid))) from pg_authid a),
  'databases', (select json_object_agg(datname, json_build_object(
      'owner', pg_get_userbyid(datdba), 'encoding', pg_encoding_to_char(encoding), 'connects', datallowconn,
      'public', exists (select from aclexplode(coalesce(datacl, acldefault('d', datdba))) x where x.grantee = 0),
      'settings', (select coalesce(json_agg(s), '[]') from pg_db_role_setting c, unnest(c.setconfig) s
                   where c.setdatabase = d.oid and c.setrole = 0))) from pg_database d))
"""
DATABASE = """
select json_build_object(
  'extensions', (select json_agg(extname) from pg_extension),
  'public_creates', exists (select from pg_namespace n, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) x
      where nspname = 'public' and x.grantee = 0 and x.privilege_type = 'CREATE'),
  'granted', json_build_array(%s))
"""


def folders(cluster):
    """Every major version whose data or configuration stands under this instance's name."""
    found = {}
    for kind, pattern in (("data", LIB), ("configuration", ETC)):
        for path in glob.glob("%s/*/%s" % (pattern, glob.escape(cluster))):
            marker = os.path.join(path, "PG_VERSION" if kind == "data" else "postgresql.conf")
            if os.path.exists(marker):
                found.setdefault(path.split("/")[-2], {})[kind] = path
    return found


def disk_mb(path):
    """Size in MB of the file system that holds the path or its nearest existing parent."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    info = os.statvfs(path)
    return info.f_blocks * info.f_frsize // 1024**2


def unreadable(paths):
    """Those of the paths that the user postgres cannot read; all that do not exist."""
    wanted = [path for path in paths if path]
    missing = [path for path in wanted if not os.path.exists(path)]
    rest = [path for path in wanted if path not in missing]
    try:
        denied = [path for path in rest if as_postgres("test", "-r", path).returncode]
    except (KeyError, LookupError, PermissionError):
        denied = []
    return missing + denied


def role_differs(wanted, found):
    """Whether a role is not as listed (its memberships apart)."""
    if found is None:
        return True
    flags = [str(flag).upper() for flag in wanted.get("attributes") or []]
    if not {"LOGIN", "NOLOGIN"} & set(flags):
        flags.append("LOGIN")
    for flag in flags:
        on = flag not in ("NOINHERIT",) and not (flag.startswith("NO") and flag[2:] in FLAGS)
        name = flag if on else flag[2:]
        if name in FLAGS and found[FLAGS[name]] != on:
            return True
    if wanted.get("password") and not matches(str(wanted["password"]), found["password"]):
        return True
    limit = wanted.get("connection_limit")
    if limit is not None and limit != found["connection_limit"]:
        return True
    return bool(settings_missing(wanted.get("settings"), found["settings"]))


def shown(value):
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def settings_missing(wanted, found):
    have = {name.lower(): value for name, value in (item.split("=", 1) for item in found)}
    return {name: value for name, value in (wanted or {}).items() if have.get(name.lower()) != shown(value)}


# How each kind of object is found, and where its privileges are.
GRANTS = {
    "database": ("pg_database", "datname = current_database()", "coalesce(datacl, acldefault('d', datdba))"),
    "schema": ("pg_namespace", "nspname in ({names})", "coalesce(nspacl, acldefault('n', nspowner))"),
    "table": ("pg_class", "relkind in ('r', 'p', 'v', 'm', 'f')", "coalesce(relacl, acldefault('r', relowner))"),
    "sequence": ("pg_class", "relkind = 'S'", "coalesce(relacl, acldefault('s', relowner))"),
}


def privilege_sql(item):
    """A boolean SQL expression: the role itself (not PUBLIC, not a group) has been granted all of these privileges."""
    kind, role = item.get("type", "database"), literal(item["role"])
    schema, objects = literal(item.get("schema") or "public"), item.get("objects") or []
    words = [{"TEMP": "TEMPORARY"}.get(str(word).upper(), str(word).upper()) for word in item["privileges"]]
    if kind == "default_privs":
        return default_privileges_sql(item, role, schema, objects or ["TABLES"], words)
    words = ALL[kind] if words == ["ALL"] else words
    table, condition, acl = GRANTS[kind]
    if kind == "schema":
        objects = objects or ["public"]
        condition = condition.format(names=", ".join(literal(name) for name in objects))
    elif kind in ("table", "sequence"):
        condition += " and relnamespace = (select oid from pg_namespace where nspname = %s)" % schema
        objects = [] if objects == ["ALL_IN_SCHEMA"] else objects
        if objects:
            condition += " and relname in (%s)" % ", ".join(literal(name) for name in objects)
    has = " and ".join(
        "exists (select from aclexplode(%s) x where pg_get_userbyid(x.grantee) = %s and x.privilege_type = %s)"
        % (acl, role, literal(word))
        for word in words
    )
    found = "count(*) = %d and " % len(objects) if objects else ""
    return "(select %scoalesce(bool_and(%s), true) from %s where %s)" % (found, has, table, condition)


def default_privileges_sql(item, role, schema, objects, words):
    tests = []
    for name in objects:
        code, kind = {"TABLES": ("r", "table"), "SEQUENCES": ("S", "sequence")}[name]
        for word in ALL[kind] if words == ["ALL"] else words:
            tests.append(
                "exists (select from pg_default_acl, aclexplode(defaclacl) x where pg_get_userbyid(defaclrole) = %s"
                " and defaclnamespace = (select oid from pg_namespace where nspname = %s) and defaclobjtype = '%s'"
                " and pg_get_userbyid(x.grantee) = %s and x.privilege_type = %s)"
                % (literal(item.get("owner") or "postgres"), schema, code, role, literal(word))
            )
    return "(%s)" % " and ".join(tests)


def inside(server, state, params):
    """What differs inside the databases: extensions, who may create in public, privileges."""
    result = {"extensions": [], "public_schemas": [], "privileges": []}
    names = {item["name"] for item in params["databases"]} | {item["database"] for item in params["privileges"]}
    for name in sorted(names):
        wanted = [item for item in params["databases"] if item["name"] == name]
        extensions = [e for item in wanted for e in item.get("extensions") or []]
        asked = [(i, item) for i, item in enumerate(params["privileges"]) if item["database"] == name]
        there = name in state["databases"]
        known = [(i, item) for i, item in asked if item["role"] in state["roles"]]
        answer = {"extensions": [], "public_creates": True, "granted": []}
        if there:
            answer = server.ask(name, DATABASE % ", ".join(privilege_sql(item) for _, item in known))
        granted = {i for (i, _), has in zip(known, answer["granted"], strict=False) if has}
        result["extensions"] += [
            {"database": name, "name": e} for e in extensions if e not in (answer["extensions"] or [])
        ]
        if wanted and answer["public_creates"]:
            result["public_schemas"].append(name)
        result["privileges"] += [i for i, _ in asked if i not in granted]
    return result


def differences(server, state, params):
    """Everything in the server that is not as wanted, as lists of names (or of indexes into the privileges)."""
    roles, databases = state["roles"], state["databases"]
    present = [item for item in params["roles"] if item.get("state", "present") == "present"]
    found = {
        "roles": [item["name"] for item in present if role_differs(item, roles.get(item["name"]))],
        "absent_roles": [
            item["name"] for item in params["roles"] if item.get("state") == "absent" and item["name"] in roles
        ],
        "memberships": [
            {"role": item["name"], "groups": missing}
            for item in present
            for missing in [
                [g for g in item.get("member_of") or [] if g not in roles.get(item["name"], {}).get("member_of", [])]
            ]
            if missing
        ],
        "databases": [
            item["name"]
            for item in params["databases"]
            if item["name"] not in databases or (item.get("owner") or "postgres") != databases[item["name"]]["owner"]
        ],
        "public_databases": [
            item["name"] for item in params["databases"] if databases.get(item["name"], {"public": True})["public"]
        ],
        "database_settings": [
            {"database": item["name"], "name": name, "value": shown(value)}
            for item in params["databases"]
            for name, value in settings_missing(
                item.get("settings"), databases.get(item["name"], {"settings": []})["settings"]
            ).items()
        ],
    }
    found.update(inside(server, state, params))
    return found


def look(params):
    version, cluster = params["version"], params["cluster"]
    found = folders(cluster)
    configuration, data = places(version, cluster)
    wanted = {**params["replication"], "patience": params["patience"]} if params["replication"] else {}
    result = {
        "configured": os.path.exists(os.path.join(configuration, "postgresql.conf")),
        "data_directory": data,
        "data_version": read(os.path.join(data, "PG_VERSION")).strip(),
        "other_versions": sorted(other for other, kinds in found.items() if other != version and "data" in kinds),
        "disk_mb": disk_mb(data),
        "installed": os.path.exists("/usr/lib/postgresql/%s/bin/postgres" % version),
        "start": start_mode(configuration),
        "upgrade": summary(cluster),
        "unreadable": unreadable(params["files"]),
        "running": False, "in_recovery": False, "checksums": True, "port": 0, "socket": "",
        "stale": False, "pending_restart": [], "differs": {}, "roles_present": [], "databases_present": {},
    }  # fmt: skip
    server = Server(version, data)
    result["manager"] = manager(configuration, data, server)
    if not server.running:
        return {**result, "replication": replication.look(version, data, server, False, wanted)}
    state = server.ask("postgres", SERVER)
    files = glob.glob(configuration + "/*.conf") + glob.glob(configuration + "/conf.d/*.conf") + params["files"]
    changed = max(os.stat(path).st_mtime for path in files if path and os.path.exists(path))
    pending = list(state["pending_restart"])
    if (
        params["drop_in"]
        and os.path.exists(params["drop_in"])
        and os.stat(params["drop_in"]).st_mtime > state["started"]
    ):
        pending.append("systemd's limits and sandbox")
    result.update(
        running=True, port=server.port, socket=server.socket, server_version=state["server_version"],
        in_recovery=state["in_recovery"], checksums=state["checksums"], started=state["started"],
        stale=changed > state["loaded"], pending_restart=pending,
        roles_present=sorted(state["roles"]),
        databases_present={name: item["encoding"] for name, item in state["databases"].items()},
        differs=differences(server, state, params),
        replication=replication.look(version, data, server, state["in_recovery"], wanted),
    )  # fmt: skip
    return result


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "str", "default": []},
            "drop_in": {"type": "str", "default": ""},
            # Packed and no_log: modules write their arguments to the host's journal, and these carry passwords.
            # (no_log on the single passwords would also blank their text out of everything that is returned.)
            "wanted": {"type": "str", "default": "", "no_log": True},
            "patience": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    nothing = {"roles": [], "databases": [], "privileges": [], "replication": {}}
    packed = module.params["wanted"]
    wanted = {**nothing, **(json.loads(base64.b64decode(packed)) if packed else {})}
    try:
        result = look({**module.params, **wanted})
    except Refused as refusal:
        module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
