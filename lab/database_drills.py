"""Drills of stage 5: what is done to the database while people use the site. Each leaves db1, the first host, as the primary."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker.models.containers import Container

from lab import ansible, commands, hosts, inventory
from lab.machine import MachineError, tail
from lab.model import Lab
from lab.report import console, step
from lab.traffic import Traffic, Visit, longest_gap

WRITES = ("order", "upload")
SWITCHOVER_SECONDS = 10  # that a write waits at most
FAILOVER_SECONDS = 15  # from the command to the first write that went well
GAP_SECONDS = 30  # at most without a write that went well, while a primary is lost and replaced
ALONE_COMMITS = 3  # on the primary that nobody reaches, so that the report has something to count
RETURN_SECONDS = 30  # in which a former primary shows what it does by itself
LAG_SECONDS = 20
SSH_SECONDS = 120
AFTER_SECONDS = 10  # of orders after the moment that is restored, which must not be there
UNDER_WAY_SECONDS = 10  # at most from an order's own time to its commit
CLOCK_SECONDS = 1  # at most between the clocks of two hosts
READ_SECONDS = 90  # within which a switchover has promoted a replica
# One transaction that reads from a replica, by the way that the site takes, until that has been the primary for a while.
LONG_READ = f"""
import time
from django.db import connections, transaction
end = time.monotonic() + {READ_SECONDS}
with transaction.atomic("replica"), connections["replica"].cursor() as cursor:
    def replica():
        cursor.execute("select pg_is_in_recovery()")
        return cursor.fetchone()[0]
    print("begun" if replica() else "not on a replica", flush=True)
    while replica() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(4)
    print("still on a replica" if replica() else "ended on the primary", flush=True)
"""


@dataclass(frozen=True)
class Members:
    """The first two hosts of database: the primary that the inventory names, and its replica."""

    primary: str
    replica: str


def hosts_in(lab: Lab, group: str) -> list[str]:
    """The hosts of a group at the lab's stage; none where it has no stage yet."""
    stage = lab.load().stage
    found = inventory.read_hosts(inventory.stage_file(lab.root, stage)) if stage else {}
    return [host for host, groups in found.items() if group in groups]


def members(lab: Lab) -> Members:
    named = hosts_in(lab, "database")
    if len(named) < 2:
        raise MachineError(f"The lab {lab.name} has {len(named)} of 2 hosts in database. ./ladder up 5 makes them.")
    return Members(named[0], named[1])


def play(lab: Lab, name: str, *words: str, fails: str = "", source: Path | None = None) -> str:
    """Run a playbook, with the stage's inventory or another; gives its output.

    With `fails` it has to fail with these words, and change nothing. Raises MachineError.
    """
    log = lab.logs / f"drill-{name}.log"
    command = ansible.playbook_command(lab, source or inventory.stage_file(lab.root, lab.load().stage), list(words))
    with step(" ".join(words)) as running:
        code, output = ansible.run_logged(command, log, running)
    if fails and (code == 0 or fails not in " ".join(output.split())):
        raise MachineError(f"{words[0]} had to fail with “{fails}”, and ended with {code}. The whole log: {log}")
    if code and not fails:
        raise MachineError(f"{ansible.failure(output)}\n\nThe whole log: {log}")
    if fails:
        see_unchanged(words[0], output)
    return output


def see_unchanged(what: str, output: str) -> None:
    """A run that refuses has changed nothing; raises MachineError with the hosts that it has changed."""
    counts = ansible.recap(output)
    changed = [host for host, count in counts.items() if count["changed"]]
    if changed or not counts:
        raise MachineError(f"{what} failed as it should, and changed {', '.join(changed) or 'nobody knows what'}.")


def on(lab: Lab, host: str, command: str) -> str:
    """Run a command as root; gives its output, raises MachineError when it fails."""
    words = [*lab.ssh_command(host), "--", f"sudo bash -c {shlex.quote(command)}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SSH_SECONDS)
    except subprocess.TimeoutExpired:
        raise MachineError(f"On {host}: {command}\nIt did not end within {SSH_SECONDS} s.") from None
    if done.returncode:
        raise MachineError(f"On {host}: {command}\n{tail(done.stdout + done.stderr, 15)}")
    return done.stdout


def ask(lab: Lab, host: str, sql: str, database: str = "postgres") -> str:
    return on(lab, host, f"cd / && runuser -u postgres -- psql -XqAtw -d {database} -c {shlex.quote(sql)}").strip()


def slot_of(host: str) -> str:
    """A member's name in the replication, which its slot has too."""
    return re.sub("[^a-z0-9_]", "_", host.lower())


def unit(lab: Lab, host: str) -> str:
    return on(lab, host, "systemctl list-units --all --plain --no-legend 'postgresql@*' | cut -d ' ' -f 1").split()[0]


def first_write(made: Traffic, since: float) -> float:
    """Seconds from a moment until a write that began after it went well; raises MachineError after a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ends = [v.due + v.seconds for v in list(made.visits) if v.kind in WRITES and v.due > since and not v.failure]
        if ends:
            return min(ends) - since
        time.sleep(0.1)
    raise MachineError("Nothing was written within a minute.")


def said_first_write(made: Traffic, since: float, most: float) -> float:
    """Wait for the first write that begins after a moment and goes well, and say it; gives the seconds, to be judged later."""
    seconds = first_write(made, since)
    console.print(f"Until the first write that went well: {seconds:.1f} s (promised: {most:g}).")
    return seconds


def in_time(seconds: float, most: float) -> None:
    if seconds > most:
        raise MachineError(f"The first write went well after {seconds:.1f} s, more than {most:g}.")


def written_again(made: Traffic, since: float, most: float) -> None:
    """Wait for the first write that begins after a moment and goes well; raises MachineError when it comes too late."""
    in_time(said_first_write(made, since, most), most)


def longest_write(visits: Iterable[Visit], since: float) -> float:
    """How long the slowest write took that was due after a moment, whether it went well or not.

    Reads say nothing of it: replicas go on serving them. Raises MachineError when nothing was written.
    """
    seconds = [visit.seconds for visit in visits if visit.kind in WRITES and visit.due >= since]
    if not seconds:
        raise MachineError("Nothing was written, so nothing was measured.")
    return max(seconds)


def writes_waited(made: Traffic, since: float, most: float) -> None:
    seconds = longest_write(list(made.visits), since)
    console.print(f"The slowest write took {seconds:.1f} s (promised: {most:g}).")
    if seconds > most:
        raise MachineError(f"A write took {seconds:.1f} s, more than {most:g}.")


def writes_paused(made: Traffic, most: float) -> None:
    """See that never for longer than so many seconds no write went well; raises MachineError."""
    writes = [visit for visit in list(made.visits) if visit.kind in WRITES]
    seconds = longest_gap(writes, made.now)
    console.print(f"The longest time without a write that went well: {seconds:.1f} s (promised: {most:g}).")
    if seconds > most:
        raise MachineError(f"For {seconds:.1f} s no write went well, more than {most:g}.")


@contextmanager
def long_read(lab: Lab) -> Iterator[None]:
    """A transaction of the site reads from the replica beside; raises MachineError unless it goes on into its time as primary."""
    name = commands.site_settings(lab)["site_name"]
    # Django's shell greets unless it is told not to.
    words = [*lab.ssh_command(hosts_in(lab, "web")[0]), "--", f"sudo {name}-manage shell -v 0"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as reads:
        assert reads.stdin and reads.stdout
        try:
            reads.stdin.write(LONG_READ)
            reads.stdin.close()
            begun = reads.stdout.readline().strip()
            if begun != "begun":
                raise MachineError(f"No read began on the replica: {begun} {tail(reads.stdout.read(), 5)}")
            yield
            said = reads.stdout.read().strip()
        finally:
            reads.kill()
    read_went_on(said)


def read_went_on(said: str) -> None:
    """Judge what the long read said at its end."""
    if said != "ended on the primary":
        raise MachineError(f"A read that was under way on the replica was not kept: {tail(said, 5)}")
    console.print("A read that was under way on the replica went on into its time as the primary.")


def switchover(lab: Lab, made: Traffic) -> None:
    """There and back; in between a stage run with the old inventory refuses and says which line to change."""
    who = members(lab)
    stage, since = lab.load().stage, made.now
    made.mark(f"switchover to {who.replica}")
    with long_read(lab):
        play(lab, "switchover", "playbooks/switchover.yml", "-e", f"to={who.replica}")
    made.mark("a stage run")
    line = f"Set site_database_primary: {who.replica} in group_vars/site.yml."
    play(lab, "refused", f"playbooks/stage{stage}.yml", fails=line)
    go_back(lab, made, who)
    writes_waited(made, since, SWITCHOVER_SECONDS)


def go_back(lab: Lab, made: Traffic, who: Members, *setting: str) -> None:
    made.mark(f"switchover to {who.primary}")
    play(lab, "back", "playbooks/switchover.yml", "-e", f"to={who.primary}", *setting)
    made.mark(f"{who.primary} is the primary")


def kill_primary_synchronous(lab: Lab, made: Traffic) -> None:
    """The same while each commit waits for the replica: nothing that was acknowledged may be lost, whatever was said."""
    stage, setting = f"playbooks/stage{lab.load().stage}.yml", ("-e", json.dumps({"postgres_synchronous_replicas": 1}))
    made.mark("commits wait for the replica")
    play(lab, "synchronous", stage, *setting)
    kill_primary(lab, made, *setting)
    who = members(lab)
    if not ask(lab, who.primary, "show synchronous_standby_names"):
        raise MachineError(f"After all this, commits on {who.primary} wait for no replica.")
    made.mark("commits wait no more")
    play(lab, "asynchronous", stage)


def kill_primary(lab: Lab, made: Traffic, *setting: str) -> int:
    """The primary's host loses power; failover, return, rejoin. Gives how many commits the report says were lost."""
    who = members(lab)
    client = commands.connect()
    container = client.containers.get(f"{lab.name}-{who.primary}")
    made.mark(f"{who.primary} loses power")
    container.kill()
    time.sleep(3)
    since = made.now
    made.mark("failover")
    play(lab, "failover", "playbooks/failover.yml", *setting)
    waited = said_first_write(made, since, FAILOVER_SECONDS)
    made.mark(f"{who.replica} is the primary")
    returns(lab, made, who)
    lost = rejoined(lab, made, who, *setting)
    # Judged now, so that a failover that came too late leaves a whole database behind.
    in_time(waited, FAILOVER_SECONDS)
    writes_paused(made, GAP_SECONDS)
    return lost


def rejoin(lab: Lab, made: Traffic) -> int:
    """PostgreSQL is stopped on a primary whose host is there: it is switched off there, and comes back by the rejoin alone.

    kill-primary has the other way: a host that is away cannot be switched off, and asks before it starts.
    """
    who = members(lab)
    own = unit(lab, who.primary)
    made.mark(f"PostgreSQL stops on {who.primary}")
    on(lab, who.primary, f"systemctl stop {own}")
    since = made.now
    made.mark("failover")
    play(lab, "failover", "playbooks/failover.yml")
    waited = said_first_write(made, since, FAILOVER_SECONDS)
    made.mark(f"{who.replica} is the primary")
    off = on(lab, who.primary, "grep -hx disabled /etc/postgresql/*/main/start.conf || true")
    started = on(lab, who.primary, f"systemctl start {own} && echo started || true; systemctl stop {own}")
    if not off or started:
        raise MachineError(
            f"failover.yml did not switch PostgreSQL off on {who.primary}: {off.strip()} {started.strip()}"
        )
    lost = rejoined(lab, made, who)
    in_time(waited, FAILOVER_SECONDS)
    writes_paused(made, GAP_SECONDS)
    if lost:
        raise MachineError(f"{who.primary} was stopped in order, and {who.replica} lacks {lost} of its commits.")
    return lost


def returns(lab: Lab, made: Traffic, who: Members) -> None:
    """The former primary's host comes back by itself: PostgreSQL must not take writes there."""
    client = commands.connect()
    client.containers.get(f"{lab.name}-{who.primary}").start()
    lab.close_connections()
    hosts.wait_until_up(client, lab, who.primary, lab.load().addresses[who.primary])
    made.mark(f"{who.primary} is back")
    end = time.monotonic() + RETURN_SECONDS
    while time.monotonic() < end:
        if "accepting" in on(lab, who.primary, "pg_isready -q && echo accepting || true"):
            raise MachineError(f"{who.primary} came back and takes connections as a primary beside {who.replica}.")
        time.sleep(1)
    words = on(lab, who.primary, f"journalctl -q -o cat -u {unit(lab, who.primary)} -b -g 'is the primary now' -n 1")
    if who.replica not in words and lab.load().addresses[who.replica] not in words:
        raise MachineError(f"{who.primary} does not say why it did not start: {words}")
    console.print(f"{who.primary} says: {words.strip()}")


def split_brain(lab: Lab, made: Traffic) -> int:
    """The primary is cut off from the network, goes on believing that it is one, and is back in it after a failover.

    Gives how many commits the report says were lost.
    """
    who, state = members(lab), lab.load()
    client = commands.connect()
    container, network = client.containers.get(f"{lab.name}-{who.primary}"), hosts.find_network(client, lab.name)
    if network is None:
        raise MachineError(f"The lab {lab.name} has no network. ./ladder up makes it.")
    made.mark(f"{who.primary} is cut off")
    network.disconnect(container)
    try:
        commit_alone(container)
        time.sleep(3)
        since = made.now
        made.mark("failover")
        play(lab, "failover", "playbooks/failover.yml")
        waited = said_first_write(made, since, FAILOVER_SECONDS)
    finally:
        network.connect(container, ipv4_address=state.addresses[who.primary])
        lab.close_connections()
    hosts.wait_until_up(client, lab, who.primary, state.addresses[who.primary])
    made.mark(f"{who.primary} is back, and believes that it is the primary")
    name = commands.site_settings(lab)["site_name"]
    before = ask(lab, who.primary, "select max(id) from orders_order", name)
    time.sleep(LAG_SECONDS)
    if ask(lab, who.primary, "select pg_is_in_recovery()") != "f":
        raise MachineError(f"{who.primary} is no primary any more, so nothing was tried.")
    after = ask(lab, who.primary, "select max(id) from orders_order", name)
    console.print(
        f"Orders that {who.primary} took beside {who.replica} in {LAG_SECONDS} s: {int(after) - int(before)}."
    )
    if after != before:
        raise MachineError(f"{who.primary} took orders although {who.replica} is the primary.")
    play(lab, "refused", f"playbooks/stage{state.stage}.yml", fails="each say that they are the primary")
    lost = rejoined(lab, made, who)
    if lost < ALONE_COMMITS:
        raise MachineError(f"rejoin.yml counted {lost} commits of {ALONE_COMMITS} that {who.primary} alone had.")
    in_time(waited, FAILOVER_SECONDS)
    writes_paused(made, GAP_SECONDS)
    return lost - ALONE_COMMITS  # no orders, so they excuse none


def commit_alone(container: Container) -> None:
    """Commit on a host that has no network any more; raises MachineError."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-XqAtw", "-c", "select pg_current_xact_id()"]
    for _ in range(ALONE_COMMITS):
        code, output = container.exec_run(command, workdir="/")
        if code:
            raise MachineError(f"{container.name} could not commit alone: {output.decode(errors='replace').strip()}")


def rejoined(lab: Lab, made: Traffic, who: Members, *setting: str) -> int:
    """The former primary becomes a replica, and then the primary again. Gives how many commits it alone had."""
    made.mark("rejoin")
    said = play(lab, "rejoin", "playbooks/rejoin.yml", "-e", f"host={who.primary}", *setting)
    found = re.search(r"alone has (\d+) commits \((\d+) bytes", " ".join(said.split()))
    if not found:
        raise MachineError(f"rejoin.yml did not say what {who.primary} alone had.")
    console.print(f"{who.primary} alone had {found[1]} commits ({found[2]} bytes of WAL).")
    go_back(lab, made, who, *setting)
    return int(found[1])


def replica_lag(lab: Lab, made: Traffic) -> None:
    """A replica that stops replaying leaves rotation; who has written reads what was written all the time."""
    who = members(lab)
    made.mark(f"{who.replica} stops replaying")
    ask(lab, who.replica, "select pg_wal_replay_pause()")
    try:
        gone = wait_for(lab, who.replica, there=False)
        made.mark("it is out of rotation")
        console.print(f"{who.replica} was out of rotation {gone:.1f} s after it had stopped.")
        time.sleep(LAG_SECONDS)
    finally:
        ask(lab, who.replica, "select pg_wal_replay_resume()")
    back = wait_for(lab, who.replica, there=True)
    made.mark("it is back")
    console.print(f"It was back {back:.1f} s after it went on.")


def wait_for(lab: Lab, replica: str, there: bool) -> float:
    """Seconds until the first web host's HAProxy has a replica in rotation, or not; raises MachineError after 30."""
    web, name = hosts_in(lab, "web")[0], commands.site_settings(lab)["site_name"]
    started = time.monotonic()
    while (
        f'"{replica}"' in on(lab, web, f"cat /run/pgbouncer-{name}/watch/servers").partition('"replicas"')[2]
    ) != there:
        if time.monotonic() - started > 30:
            raise MachineError(f"After 30 s {replica} is still {'not ' if there else ''}in rotation on {web}.")
        time.sleep(0.3)
    return time.monotonic() - started


def restore(lab: Lab, made: Traffic) -> None:
    """A random moment comes back as it was noted, and one that is chosen has exactly the orders that were placed by then."""
    made.mark("a backup")
    play(lab, "backup", "playbooks/backup.yml", "-e", "type=incr")
    made.mark("a restore to a random moment")
    for words in proven(play(lab, "restore", "playbooks/restore-drill.yml")):
        console.print(words)
    made.mark("it was as it should be")
    restore_orders(lab, made)


def proven(said: str) -> list[str]:
    """What restore-drill.yml says it has proven; raises MachineError when a sentence is not there."""
    plain = " ".join(said.split())  # Ansible breaks long lines
    found = []
    for sentence in (
        r"\S+ as of \S+ \S+ was there [\d.]+ s after the restore began \(RTO\)",
        r"\d+ tables equal to the last bit, \d+ that were written to hold what they may; no damage in any page or index",
        r"the writes of at most [\d.]+ s would have been lost \(RPO\)",
    ):
        match = re.search(sentence, plain)
        if not match:
            raise MachineError(f"restore-drill.yml did not say “{sentence}”.")
        found.append(match[0])
    return found


@dataclass(frozen=True)
class Moment:
    """A moment by the database's own clock, which lies between two of the traffic's: no clock is compared with another."""

    words: str
    since: float
    until: float


def restore_orders(lab: Lab, made: Traffic) -> None:
    """Restore to a moment beside the site, and compare the copy's orders with those that visitors placed by then."""
    primary, keeper, name = hosts_in(lab, "database")[0], backup_keeper(lab), commands.site_settings(lab)["site_name"]
    moment = now_of(lab, made, primary)
    made.mark("the moment")
    time.sleep(AFTER_SECONDS)
    made.mark("a restore to it")
    said = play(lab, "restore-beside", "playbooks/restore.yml", "-e", f"moment='{moment.words}'")
    look, remove = commands_said(said)
    try:
        keys = on(lab, keeper, f"cd / && {look} -XqAtw -c \"select key from orders_order where key like 'traffic-%'\"")
        total = int(on(lab, keeper, f"cd / && {look} -XqAtw -c 'select count(*) from orders_order'"))
    finally:
        on(lab, keeper, remove)
    made.mark("the copy is removed")
    before, after = judge_copy(moment, dict(made.sent), dict(made.answered), set(keys.split()))
    least, most = placed_by(lab, primary, name, moment)
    if not least <= total <= most:
        raise MachineError(
            f"The copy of {moment.words} has {total} orders; the site has {least} to {most} that were placed by then."
        )
    console.print(
        f"As of {moment.words} the copy has all {before} orders acknowledged before and none of the {after} sent after; "
        f"{total} in all, where the site has {least} to {most}."
    )


def now_of(lab: Lab, made: Traffic, primary: str) -> Moment:
    since = made.now
    words = ask(lab, primary, "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS.US+00')")
    return Moment(words, since, made.now)


def commands_said(said: str) -> tuple[str, str]:
    """How restore.yml says that one looks into what it has restored, and removes it; both as root."""
    look = re.search(r"(?m)^ *look: +sudo (runuser .*\S)$", said)
    remove = re.search(r"(?m)^ *remove: +sudo (/etc/pgbackrest/control discard \S+)$", said)
    if not look or not remove:
        raise MachineError("restore.yml did not say how to look into the copy and how to remove it.")
    return look[1], remove[1]


def judge_copy(moment: Moment, sent: dict[str, float], answered: dict[str, float], there: set[str]) -> tuple[int, int]:
    """How many orders were acknowledged before a moment and sent after it; raises MachineError for one that is missing or too many.

    What was under way at the moment may be there or not. Where there is nothing to compare, nothing was proven.
    """
    before = {key for key, at in answered.items() if at < moment.since}
    after = {key for key, at in sent.items() if at > moment.until}
    if not before or not after:
        raise MachineError(
            f"{len(before)} orders were acknowledged before {moment.words} and {len(after)} sent after it, so nothing was compared."
        )
    missing, early = before - there, after & there
    if missing or early:
        raise MachineError(
            f"The copy of {moment.words} lacks {len(missing)} orders of {len(before)} that were acknowledged before, and has "
            f"{len(early)} of {len(after)} that were sent after: {', '.join(sorted(missing | early)[:3])}"
        )
    return len(before), len(after)


def placed_by(lab: Lab, primary: str, name: str, moment: Moment) -> tuple[int, int]:
    """How many orders the site has of before a moment: at least, at most. An order's own time is the web host's, and before its commit."""
    at = f"timestamptz '{moment.words}'"
    counts = ", ".join(
        f"count(*) filter (where created <= {at} {more})"
        for more in (f"- interval '{UNDER_WAY_SECONDS} s'", f"+ interval '{CLOCK_SECONDS} s'")
    )
    least, most = ask(lab, primary, f"select {counts} from orders_order", name).split("|")
    return int(least), int(most)


def backup_keeper(lab: Lab) -> str:
    """The host that keeps the backups, chosen as the playbooks do: of backup, else a web host that is no database, else that."""
    database = hosts_in(lab, "database")
    return [*hosts_in(lab, "backup"), *(host for host in hosts_in(lab, "web") if host not in database), *database][0]


def backup_host(lab: Lab) -> str:
    named = hosts_in(lab, "backup")
    if not named:
        raise MachineError(f"The lab {lab.name} has no host in backup. ./ladder up 5 makes one.")
    return named[0]


def lost_backup_host(lab: Lab, made: Traffic) -> None:
    """The host that keeps the backups loses power; the site goes on, the alarm is raised, and all WAL arrives afterwards."""
    who, keeper, client = members(lab), backup_host(lab), commands.connect()
    container = client.containers.get(f"{lab.name}-{keeper}")
    made.mark(f"{keeper} loses power")
    container.kill()
    try:
        ask(lab, who.primary, "select pg_switch_wal()")
        alarm(lab, who.primary, True)
        made.mark("the alarm is raised")
    finally:
        container.start()
        lab.close_connections()
        hosts.wait_until_up(client, lab, keeper, lab.load().addresses[keeper])
    made.mark(f"{keeper} is back")
    alarm(lab, who.primary, False)
    play(lab, "lost-backup-host", "playbooks/backup-status.yml")


def archive_stalled(lab: Lab, made: Traffic) -> None:
    """WAL does not get to the repository, though its host is there; the alarm is raised, and all of it arrives in the end."""
    who, keeper = members(lab), backup_host(lab)
    made.mark("archiving stalls")
    on(lab, keeper, "systemctl stop pgbackrest.service")
    try:
        ask(lab, who.primary, "select pg_switch_wal()")
        alarm(lab, who.primary, True)
        made.mark("the alarm is raised")
    finally:
        on(lab, keeper, "systemctl start pgbackrest.service")
    made.mark("archiving goes on")
    alarm(lab, who.primary, False)
    play(lab, "archive-stalled", "playbooks/backup-status.yml")


def alarm(lab: Lab, primary: str, raised: bool) -> None:
    """See that the check that a timer runs fails, or goes well again; raises MachineError after two minutes."""
    end = time.monotonic() + 120
    while True:
        failed = "failed" in on(lab, primary, "systemctl start pgbackrest-check.service && echo well || echo failed")
        if failed == raised:
            return
        if time.monotonic() > end:
            raise MachineError(f"pgbackrest-check.service {'did not fail' if raised else 'still fails'} on {primary}.")
        time.sleep(2)


def replica_full_disk(lab: Lab, made: Traffic) -> None:
    """A replica is away for so long that its WAL would fill the primary's disk: it is given up, the primary is not."""
    who = members(lab)
    slot = slot_of(who.replica)
    ask(lab, who.primary, "alter system set max_slot_wal_keep_size = '64MB'")
    ask(lab, who.primary, "alter system set wal_keep_size = '0'")
    ask(lab, who.primary, "alter system set max_wal_size = '64MB'")
    ask(lab, who.primary, "select pg_reload_conf()")
    made.mark(f"{who.replica} is away, and much is written")
    on(lab, who.replica, f"systemctl stop {unit(lab, who.replica)}")
    try:
        ask(lab, who.primary, "create table filler (content text)")
        for _ in range(24):
            ask(
                lab,
                who.primary,
                "insert into filler select repeat(md5(random()::text), 30) from generate_series(1, 12000)",
            )
            ask(lab, who.primary, "truncate filler")
            ask(lab, who.primary, "select pg_switch_wal()")
        ask(lab, who.primary, "checkpoint")
        state = ask(lab, who.primary, f"select wal_status from pg_replication_slots where slot_name = '{slot}'")
        kept = int(ask(lab, who.primary, "select sum(size) from pg_ls_waldir()")) // 1024 // 1024
        console.print(f"The slot of {who.replica} is {state}; the primary keeps {kept} MB of WAL.")
        if state != "lost" or kept > 400:
            raise MachineError(f"The slot of {who.replica} is {state}, and the primary keeps {kept} MB of WAL.")
        play(lab, "lost-slot", "playbooks/replica-status.yml", fails=f"The slot {slot} on {who.primary} was lost")
    finally:
        for name in ("max_slot_wal_keep_size", "wal_keep_size", "max_wal_size"):
            ask(lab, who.primary, f"alter system reset {name}")
        ask(lab, who.primary, "select pg_reload_conf()")
        ask(lab, who.primary, "drop table if exists filler")
    copy_anew(lab, made, who.replica)


def copy_anew(lab: Lab, made: Traffic, replica: str) -> None:
    made.mark(f"{replica} is copied anew")
    play(lab, "copied-anew", "playbooks/rejoin.yml", "-e", f"host={replica}", "-e", "copy=true")
    made.mark("it follows")


def remove_replica(lab: Lab, made: Traffic) -> None:
    """The last replica leaves by the steps of docs/operations/remove-replica.md and comes back by add-replica.md's."""
    who, stage = members(lab), f"playbooks/stage{lab.load().stage}.yml"
    play(lab, "replica-status", "playbooks/replica-status.yml")
    made.mark(f"the site reads from {who.primary}")
    play(lab, "reads-elsewhere", stage, "-e", "django_read_replica=")
    made.mark(f"{who.replica} leaves")
    with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
        smaller = inventory.without(lab.root, lab.load().stage, who.replica, Path(folder))
        play(lab, "leaves", stage, "-e", json.dumps({"site_pooler": True}), source=smaller)
    see_forgotten(lab, who)
    client = commands.connect()
    container = client.containers.get(f"{lab.name}-{who.replica}")
    made.mark(f"{who.replica} is turned off")
    container.kill()
    try:
        drop_slot(lab, who)
        time.sleep(AFTER_SECONDS)
    finally:
        container.start()
        lab.close_connections()
        hosts.wait_until_up(client, lab, who.replica, lab.load().addresses[who.replica])
    made.mark(f"{who.replica} comes back")
    play(lab, "comes-back", stage)
    if not streams(lab, who):  # its slot was gone, and maybe the WAL that it needs
        copy_anew(lab, made, who.replica)
    back = wait_for(lab, who.replica, there=True)
    made.mark(f"the site reads from {who.replica}")
    console.print(f"{who.replica} was in rotation {back:.1f} s after it had come back.")
    play(lab, "replica-status", "playbooks/replica-status.yml")


def see_forgotten(lab: Lab, who: Members) -> None:
    """No host of the site sends anything to a replica that has left, and the primary lets no replica in."""
    wait_for(lab, who.replica, there=False)
    rules = ask(lab, who.primary, "select count(*) from pg_hba_file_rules where 'replication' = any(database)")
    if rules != "0":
        raise MachineError(f"{who.primary} still lets replicas in, by {rules} lines of its pg_hba.conf.")


def drop_slot(lab: Lab, who: Members) -> None:
    """As soon as the primary has noticed that the replica is away; raises MachineError after a minute."""
    name, end = slot_of(who.replica), time.monotonic() + 60
    while ask(lab, who.primary, f"select active from pg_replication_slots where slot_name = '{name}'") == "t":
        if time.monotonic() > end:
            raise MachineError(
                f"A minute after {who.replica} was turned off, its slot on {who.primary} is still in use."
            )
        time.sleep(1)
    ask(lab, who.primary, f"select pg_drop_replication_slot('{name}')")


def streams(lab: Lab, who: Members) -> bool:
    """Whether a replica receives from the primary, within half a minute."""
    seen = f"select count(*) from pg_stat_replication where state = 'streaming' and application_name = '{slot_of(who.replica)}'"
    end = time.monotonic() + 30
    while (found := ask(lab, who.primary, seen)) == "0" and time.monotonic() < end:
        time.sleep(1)
    return found != "0"
