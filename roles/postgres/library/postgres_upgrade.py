#!/usr/bin/python
"""One step of an upgrade to another major version by pg_upgrade --link; each is noted when it is done."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_upgrade
short_description: Look whether an instance can be upgraded to another major version, and do it step by step
description:
  - The version that there is, is found on the host. C(look) changes nothing and fails with what speaks against it.
  - C(make) makes the new instance, empty and stopped, as the old one was made. C(check) has pg_upgrade compare both while the old
    one serves. C(hold) keeps the old one from starting again. C(link) runs pg_upgrade on the stopped one. C(start) lets the new one
    start, and from there the old one must not. C(extensions) and C(analyse) are done in the running new one. C(finish) gives the old
    data another name and ends the upgrade.
  - A step that was done is not done again. Nothing is deleted but the folder that pg_upgrade worked in.
options:
  cluster:
    description: The instance's name.
    type: str
    required: true
  to:
    description: The major version wanted.
    type: str
    required: true
  step:
    description: Which step.
    type: str
    choices: [look, make, check, hold, link, start, extensions, analyse, finish]
    required: true
  port:
    description: The new instance's port.
    type: int
    default: 5432
  packages:
    description: For C(look), further packages of the old version, whose names have its number.
    type: list
    elements: str
    default: []
author: Stepladder
"""

import contextlib
import fcntl
import glob
import os
import pwd
import re
import shutil
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_server import LIB, Refused, Server, as_postgres, control, literal, places, read
from ansible.module_utils.postgres_upgrading import GONE, HELD, folder, note, progress

PROGRAMS, SHARED = "/usr/lib/postgresql/%s/bin/", "/usr/share/postgresql/%s/extension/%s.control"
SPARE_PORT = 50433  # for the socket's name only, in pg_upgrade's own folder
# Contrib modules that a version left out.
GONE_EXTENSIONS = {"adminpack": 17, "old_snapshot": 17}
# The catalogs of a new version are written anew for each database, and its first WAL.
ROOM_BYTES, ROOM_PER_DATABASE = 1 << 30, 32 << 20
OF_THE_OLD = "10-stepladder.conf"  # written anew by the role
ABOUT = """
select json_build_object(
  'in_recovery', pg_is_in_recovery(),
  'owner', (select rolname from pg_authid where oid = 10),
  'replicas', (select coalesce(json_agg(distinct application_name), '[]') from pg_stat_replication),
  'slots', (select coalesce(json_agg(slot_name order by slot_name), '[]') from pg_replication_slots where not temporary),
  'prepared', (select coalesce(json_agg(gid order by gid), '[]') from pg_prepared_xacts),
  'tablespaces', (select coalesce(json_agg(spcname order by spcname), '[]') from pg_tablespace
                  where spcname not in ('pg_default', 'pg_global')),
  'databases', (select json_agg(datname order by datname) from pg_database where datallowconn),
  'closed', (select coalesce(json_agg(datname order by datname), '[]') from pg_database where not datallowconn and datname <> 'template0'),
  'bytes', (select sum(pg_database_size(oid)) from pg_database),
  'checksums', current_setting('data_checksums') = 'on',
  'segment_mb', (select setting::bigint / 1048576 from pg_settings where name = 'wal_segment_size'),
  'lc', json_build_object('messages', current_setting('lc_messages'), 'monetary', current_setting('lc_monetary'),
                          'numeric', current_setting('lc_numeric'), 'time', current_setting('lc_time')),
  'template', (select json_build_object(
      'encoding', pg_encoding_to_char(encoding), 'collate', datcollate, 'ctype', datctype, 'provider', datlocprovider,
      'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', '')) from pg_database d where datname = 'template0'))
"""
EXTENSIONS = "select coalesce(json_agg(extname order by extname), '[]') from pg_extension"


def run(*command, **words):
    """A program as postgres; its output when it ends well, else Refused with the end of what it said."""
    done = as_postgres(*command, timeout=None, **words)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-25:]
        for path in re.findall(r"(?m)(?:^|\s)(/\S+\.txt)\s*$", "\n".join(said)):
            said += read(path).splitlines()[:10]  # what pg_upgrade has found, by name
        raise Refused("%s ended with %d: %s" % (os.path.basename(command[0]), done.returncode, "\n".join(said)))
    return done.stdout


def versions(cluster):
    """The major versions whose data there is under the instance's name, the oldest first."""
    found = glob.glob("%s/*/%s/PG_VERSION" % (LIB, glob.escape(cluster)))
    found += [
        os.path.join(places(path.split("/")[-3], cluster)[1], "PG_VERSION")
        for path in glob.glob("/etc/postgresql/*/%s/postgresql.conf" % glob.escape(cluster))
    ]
    return sorted({text for text in (read(path).strip() for path in found) if text.isdigit()}, key=int)


def present(cluster, to):
    """The version that is to be upgraded: the one that runs, else the newest that is not the wanted one; else empty."""
    found = versions(cluster)
    running = [one for one in found if Server(one, places(one, cluster)[1]).running]
    return next(iter(running or [one for one in reversed(found) if one != to] or found), "")


def start_conf(version, cluster, word):
    """Debian's word on whether an instance starts: auto, manual or disabled."""
    with open(os.path.join(places(version, cluster)[0], "start.conf"), "w") as out:
        out.write(word + "\n")


def of_version(package, old, new):
    """postgresql-15-postgis-3 as it is called for another version."""
    return re.sub(r"(?<=-)%s(?=-|$)" % re.escape(old), new, package)


def owners(extensions, version):
    """Which packages the extensions come from: {extension: package}; one that comes from none is left out."""
    paths = {SHARED % (version, name): name for name in extensions}
    done = subprocess.run(
        ["dpkg-query", "--search", *paths],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    found = {}
    for line in done.stdout.splitlines():
        package, _, path = line.partition(": ")
        if path in paths:
            found[paths[path]] = package.split(",")[0].split(":")[0]
    return found


def candidates(packages):
    """Those of the packages that the host's sources (or the host itself) have."""
    done = subprocess.run(
        ["apt-cache", "policy", *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    found = re.findall(r"(?m)^(\S+):\n(?:  .*\n)*?  Candidate: (?!\(none\))", done.stdout)
    return {name.split(":")[0] for name in found}


def extensions_of(server, databases):
    """Which extensions are used, and where: {extension: [databases]}."""
    found = {}
    for database in databases:
        for name in server.ask(database, EXTENSIONS):
            found.setdefault(name, []).append(database)
    return found


def without_files(extensions, to):
    """Refusals for extensions that the new version, which is installed, has no files of."""
    return [
        "the extension %s (in %s) is not there for PostgreSQL %s. Install it for %s, or drop it: drop extension %s"
        % (name, ", ".join(where), to, to, name)
        for name, where in sorted(extensions.items())
        if not os.path.exists(SHARED % (to, name))
    ]


def against(about, cluster, old, to):
    """What in the running old server speaks against an upgrade, one sentence each."""
    found, data = [], places(old, cluster)[1]
    if about["in_recovery"]:
        found.append("it is a replica, and only a primary is upgraded; its replicas copy it afterwards")
    if about["replicas"]:
        found.append(
            "%s copies it, and could not follow it. Take the replicas out, and add them again afterwards: docs/operations/remove-replica.md"
            % ", ".join(about["replicas"])
        )
    if about["slots"]:
        found.append(
            "pg_upgrade does not carry the replication slots %s over. When nobody needs them: %s"
            % (
                ", ".join(about["slots"]),
                "; ".join("select pg_drop_replication_slot(%s)" % literal(name) for name in about["slots"]),
            )
        )
    if about["prepared"]:
        found.append(
            "transactions are prepared and neither committed nor rolled back (%s). End them: rollback prepared %s"
            % (", ".join(about["prepared"]), literal(about["prepared"][0]))
        )
    if about["tablespaces"]:
        found.append(
            "it has tablespaces (%s), which this does not move. Move the tables to pg_default, and drop them"
            % ", ".join(about["tablespaces"])
        )
    if about["closed"]:
        found.append(
            "nobody may connect to %s, and pg_upgrade has to: alter database %s allow_connections true"
            % (", ".join(about["closed"]), about["closed"][0])
        )
    if about["owner"] != "postgres":
        found.append("it was made by the role %s, and this works as postgres" % about["owner"])
    parent = os.path.join(LIB, to)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if os.stat(data).st_dev != os.stat(parent).st_dev:
        found.append("%s and %s are on different file systems, between which no file can be linked" % (data, parent))
    room = os.statvfs(parent)
    free, needed = room.f_bavail * room.f_frsize, ROOM_BYTES + ROOM_PER_DATABASE * len(about["databases"])
    if free < needed:
        found.append(
            "%s has %d MiB left, and the new version's own tables need up to %d. Make room"
            % (parent, free >> 20, needed >> 20)
        )
    return found


def unpackaged(extensions, more, old, to):
    """(packages to install, refusals): of the new server, of extensions, and those that were asked for."""
    mine, server = owners(extensions, old), "postgresql-%s" % to
    packages = {of_version(name, old, to) for name in [*mine.values(), *more]} - {server}
    have = candidates([server, "postgresql-client-%s" % to, *packages])
    if server not in have:
        return [], [
            "no package source of this host has %s. Debian has one major version in each release; PostgreSQL's own repository has all: set "
            "postgres_repository: pgdg, and run your stage, which adds it" % server
        ]
    found = ["the package %s is in no package source of this host" % name for name in sorted(packages - have)]
    if os.path.exists(PROGRAMS % to + "postgres"):
        later = {
            name: where for name, where in extensions.items() if of_version(mine.get(name, ""), old, to) in {server, ""}
        }
        found += without_files(later, to)
    else:
        found += [
            "the extension %s (in %s) is not there for PostgreSQL %s any more. Drop it: drop extension %s"
            % (name, ", ".join(where), to, name)
            for name, where in sorted(extensions.items())
            if int(to) >= GONE_EXTENSIONS.get(name, 10**6)
        ]
        found += [
            "the extension %s (in %s) came from no package. Install PostgreSQL %s, and the extension for it"
            % (name, ", ".join(where), to)
            for name, where in sorted(extensions.items())
            if name not in mine and not os.path.exists(SHARED % (to, name))
        ]
    return sorted(packages), found


def look(cluster, to, more):
    """What there is, what was done, and what speaks against it."""
    state = progress(cluster)
    old = state.get("from") or present(cluster, to)
    told = {"from": old, "to": to, "done": state.get("done", []), "packages": [], "databases": [], "bytes": 0}
    if not old:
        raise Refused("there is no data of the instance %s. postgres changed nothing. A stage run makes it." % cluster)
    if state and state["to"] != to:
        raise Refused(
            "an upgrade from %s to %s was begun. postgres changed nothing. Go on with it, or go back: docs/operations/upgrade-postgres.md"
            % (old, state["to"])
        )
    if int(old) >= int(to):
        raise Refused("the data is version %s already, and %s is not newer. postgres changed nothing." % (old, to))
    if HELD in told["done"]:
        return told
    configuration, data = places(old, cluster)
    target, server = places(to, cluster), Server(old, data)
    word = read(os.path.join(configuration, "start.conf")).split("#")[0].split()
    if os.path.exists(os.path.join(configuration, "patroni.conf")):
        raise Refused(
            "Patroni leads this instance. postgres changed nothing. Let Patroni give it back first (role patroni, tasks_from: leave)."
        )
    if word and word != ["auto"]:
        raise Refused(
            "start.conf says %s, so somebody else starts and stops it. postgres changed nothing. Let it say auto first."
            % word[0]
        )
    if not state and [path for path in target if os.path.isdir(path) and os.listdir(path)]:
        raise Refused(
            "there is something in %s already, which no upgrade made. postgres changed nothing. Look at it, and move it away."
            % " or ".join(target)
        )
    if not server.running:
        raise Refused(
            "PostgreSQL %s does not run. postgres changed nothing. Start it: sudo systemctl start postgresql@%s-%s"
            % (old, old, cluster)
        )
    about = server.ask("postgres", ABOUT)
    extensions = extensions_of(server, about["databases"])
    told["packages"], found = unpackaged(extensions, more, old, to)
    found = against(about, cluster, old, to) + found
    if found:
        raise Refused("PostgreSQL %s cannot become %s. postgres changed nothing.\n%s." % (old, to, ".\n".join(found)))
    return {**told, "databases": about["databases"], "bytes": int(about["bytes"])}


def initdb_words(about, to, group):
    """initdb's options that make a cluster as the old one was made; pg_upgrade compares what matters."""
    template = about["template"]
    words = [
        "--username=postgres", "--auth-local=peer", "--auth-host=scram-sha-256", "--wal-segsize=%d" % about["segment_mb"],
        "--encoding=" + template["encoding"], "--lc-collate=" + template["collate"], "--lc-ctype=" + template["ctype"],
    ]  # fmt: skip
    words += ["--lc-%s=%s" % (name, value) for name, value in sorted(about["lc"].items()) if value]
    if template["provider"] == "i":
        words += ["--locale-provider=icu", "--icu-locale=" + template["locale"]]
    elif template["provider"] == "b":
        words += ["--locale-provider=builtin", "--builtin-locale=" + template["locale"]]
    if about["checksums"]:
        words.append("--data-checksums")
    elif int(to) >= 18:  # there they are the default
        words.append("--no-data-checksums")
    return words + (["--allow-group-access"] if group else [])


def aside(path):
    """Give what a failed attempt left another name."""
    os.rename(path, "%s.failed-%s" % (path, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())))


def make_data(cluster, to, words):
    """An empty cluster under the new version's name; what an attempt left there before is moved aside."""
    configuration, data = "/etc/postgresql/%s/%s" % (to, cluster), "%s/%s/%s" % (LIB, to, cluster)
    if os.path.isdir(data) and os.listdir(data):
        aside(data)
    user, parent = pwd.getpwnam("postgres"), os.path.dirname(data)
    if not os.path.isdir(parent):
        os.makedirs(parent)
        os.chown(parent, user.pw_uid, user.pw_gid)
    run(PROGRAMS % to + "initdb", "--pgdata=" + data, *words)
    if os.path.exists(configuration + "/postgresql.conf"):
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            os.unlink(os.path.join(data, name))
    return configuration, data


def carry(cluster, old, to):
    """What somebody has set beside the role: ALTER SYSTEM, later files in conf.d, names in pg_ident.conf."""
    (theirs, old_data), (ours, data) = places(old, cluster), places(to, cluster)
    pairs = [
        (path, os.path.join(ours, "conf.d", os.path.basename(path))) for path in glob.glob(theirs + "/conf.d/*.conf")
    ]
    pairs += [
        (theirs + "/pg_ident.conf", ours + "/pg_ident.conf"),
        (old_data + "/postgresql.auto.conf", data + "/postgresql.auto.conf"),
    ]
    for source, target in pairs:
        if os.path.basename(source) != OF_THE_OLD and os.path.exists(source):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(source, target)
            info = os.stat(source)
            os.chown(target, info.st_uid, info.st_gid)


def make(state, cluster, to, port):
    """Initialise the new cluster, and have Debian's tools know it: stopped, and not to be started."""
    old = state["from"]
    old_data = places(old, cluster)[1]
    if "made" in state["done"]:
        carry(cluster, old, to)
        return False
    about = Server(old, old_data).ask("postgres", ABOUT)
    state["initdb"] = initdb_words(about, to, os.stat(old_data).st_mode & 0o040)
    note(cluster, state)  # from here on the new directories are known to be this upgrade's
    configuration, _ = make_data(cluster, to, state["initdb"])
    if not os.path.exists(configuration + "/postgresql.conf"):
        done = subprocess.run(
            ["pg_createcluster", to, cluster, "--port", str(port), "--start-conf", "manual", "--no-status"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        if done.returncode:
            raise Refused("pg_createcluster ended with %d: %s" % (done.returncode, done.stderr.strip()))
    carry(cluster, old, to)
    return finished(state, cluster, "made")


def finished(state, cluster, step):
    if step in state["done"]:
        return False
    state["done"].append(step)
    note(cluster, state)
    return True


def pg_upgrade(state, cluster, to, lock, *more):
    """pg_upgrade's command in its own folder. Nobody else meets its servers, and none of them archives anything."""
    quiet = "-c archive_mode=off -c shared_buffers=128MB -c huge_pages=off"
    old = state["from"]
    return run(
        PROGRAMS % to + "pg_upgrade", "--link", "--username=postgres",
        "--old-bindir=" + PROGRAMS % old, "--new-bindir=" + PROGRAMS % to,
        "--old-datadir=" + places(old, cluster)[0], "--new-datadir=" + places(to, cluster)[0],
        "--old-port=%d" % (Server(old, places(old, cluster)[1]).port or SPARE_PORT - 1), "--new-port=%d" % SPARE_PORT,
        "--old-options=" + quiet, "--new-options=" + quiet, *more,
        cwd=folder(cluster), pass_fds=[lock],
    )  # fmt: skip


def check(state, cluster, to, lock):
    """Both clusters compared while the old one serves; then what is in memory is written, so that the stop is short."""
    server = Server(state["from"], places(state["from"], cluster)[1])
    lacking = without_files(extensions_of(server, server.ask("postgres", ABOUT)["databases"]), to)
    if lacking:
        raise Refused("%s." % ".\n".join(lacking))
    pg_upgrade(state, cluster, to, lock, "--check")
    run(server.psql, "-XqAtw", "-h", server.socket, "-p", str(server.port), "-d", "postgres", "-c", "checkpoint")
    finished(state, cluster, "checked")


def hold(state, cluster):
    """The old server is to stop, and not to be started by a boot or a stage run."""
    if HELD in state["done"]:
        return False
    start_conf(state["from"], cluster, "disabled")
    return finished(state, cluster, HELD)


def settle(old, cluster, lock):
    """See that the old data was left the clean way; after a loss of power it is recovered first, met by nobody."""
    configuration, data = places(old, cluster)
    if control(old, data).get("Database cluster state") == "shut down":
        return
    pg_ctl, place = PROGRAMS % old + "pg_ctl", folder(cluster)
    alone = "-c listen_addresses='' -c unix_socket_directories='%s'" % place
    run(
        pg_ctl,
        "-D",
        configuration,
        "-w",
        "-t",
        "86400",
        "-l",
        place + "/recovery.log",
        "-o",
        alone,
        "start",
        pass_fds=[lock],
    )
    run(pg_ctl, "-D", configuration, "-w", "-t", "86400", "-m", "fast", "stop")


def link(state, cluster, to, lock):
    """Carry everything over. An attempt that was cut off is begun anew: until the new server has run the old files are whole."""
    if "linked" in state["done"]:
        return False
    old_data = places(state["from"], cluster)[1]
    if Server(state["from"], old_data).running:
        raise Refused("PostgreSQL %s still runs. Stop it first." % state["from"])
    hidden = os.path.join(old_data, "global/pg_control.old")
    if "linking" in state["done"] or os.path.exists(hidden):
        if os.path.exists(hidden):
            os.rename(hidden, hidden[: -len(".old")])
        make_data(cluster, to, state["initdb"])
    settle(state["from"], cluster, lock)
    carry(cluster, state["from"], to)
    finished(state, cluster, "linking")
    pg_upgrade(state, cluster, to, lock)
    if not os.path.exists(hidden):
        raise Refused(
            "pg_upgrade has not put %s away, so the old server could be started beside the new one. Look at it before going on."
            % hidden[: -len(".old")]
        )
    return finished(state, cluster, "linked")


def start(state, cluster, to):
    """The new server may start. What it writes makes the old one's files useless, and that is noted first."""
    if "linked" not in state["done"]:
        raise Refused("pg_upgrade has not run to its end, so there is nothing to start.")
    changed = finished(state, cluster, GONE)
    if changed:
        start_conf(to, cluster, "auto")
    return changed


def inside(state, cluster, to, step):
    """In the running new server: newer versions of extensions, or what the planner has to know."""
    server = Server(to, places(to, cluster)[1])
    if not server.running:
        raise Refused("PostgreSQL %s does not run. Its log says why." % to)
    finished(state, cluster, "started")
    if step in state["done"]:
        return False
    where = ["-h", server.socket, "-p", str(server.port)]
    script = os.path.join(folder(cluster), "update_extensions.sql")
    if step == "analysed":
        run(
            PROGRAMS % to + "vacuumdb",
            *where,
            "--all",
            "--analyze-in-stages",
            "--jobs=%d" % min(max(1, (os.cpu_count() or 1) // 2), 8),
            "--no-password",
        )
    elif os.path.exists(script):
        run(server.psql, "-XqAtw", "-v", "ON_ERROR_STOP=1", *where, "-d", "postgres", "-f", script)
    return finished(state, cluster, step)


def finish(state, cluster, to):
    """The old data takes another name, under which nothing starts it, and the upgrade is over. Returns where it is, and what may go."""
    if "analysed" not in state["done"]:
        raise Refused("the upgrade is not at its end.")
    configuration, data = places(state["from"], cluster)
    path = "%s.upgraded-to-%s" % (data, to)
    if os.path.exists(data):
        os.rename(data, path)
    shutil.rmtree(folder(cluster))
    failed = sorted(glob.glob(glob.escape(places(to, cluster)[1]) + ".failed-*"))
    drop_in = "/etc/systemd/system/postgresql@%s-%s.service.d" % (state["from"], cluster)
    return path, [one for one in [path, *failed, configuration, drop_in] if os.path.exists(one)]


@contextlib.contextmanager
def work(cluster, old, to):
    """pg_upgrade's folder with the note in it; one at a time, for as long as a program that was started lives."""
    path, user = folder(cluster), pwd.getpwnam("postgres")
    os.makedirs(path, mode=0o700, exist_ok=True)
    os.chown(path, user.pw_uid, user.pw_gid)
    lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Refused("another run of this upgrade is still at work. Wait for it.") from error
    try:
        yield progress(cluster) or {"from": old, "to": to, "done": []}, lock
    finally:
        os.close(lock)


def act(step, cluster, to, port, told):
    with work(cluster, told["from"], to) as (state, lock):
        if step == "make":
            return {"changed": make(state, cluster, to, port)}
        if step == "check":
            check(state, cluster, to, lock)
            return {"changed": False}
        if step == "hold":
            return {"changed": hold(state, cluster)}
        if step == "link":
            return {"changed": link(state, cluster, to, lock)}
        if step == "start":
            return {"changed": start(state, cluster, to)}
        if step == "finish":
            path, rest = finish(state, cluster, to)
            return {"changed": True, "aside": path, "remove": rest}
        return {"changed": inside(state, cluster, to, {"extensions": "extensions", "analyse": "analysed"}[step])}


def main():
    steps = ["look", "make", "check", "hold", "link", "start", "extensions", "analyse", "finish"]
    module = AnsibleModule(
        argument_spec={
            "cluster": {"type": "str", "required": True},
            "to": {"type": "str", "required": True},
            "step": {"type": "str", "required": True, "choices": steps},
            "port": {"type": "int", "default": 5432},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    step, cluster, to = params["step"], params["cluster"], params["to"]
    try:
        if step == "look":
            module.exit_json(changed=False, upgrade=look(cluster, to, params["packages"]))
        if module.check_mode:
            module.exit_json(changed=step != "check", aside="", remove=[])
        told = progress(cluster) or {"from": present(cluster, to)}
        module.exit_json(**act(step, cluster, to, params["port"], told))
    except Refused as refusal:
        module.fail_json(msg="postgres: %s" % refusal)


if __name__ == "__main__":
    main()
