"""Drills of automatic failover: the database is taken over by Patroni, survives by itself, and is given back.

Each leaves db1, the first host, as the primary. Those in the middle need patroni-adopt before them.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from docker.models.containers import Container

from lab import commands, hosts
from lab.database_drills import Members, ask, go_back, members, on, play, wait_for, written_again
from lab.machine import MachineError
from lab.model import Lab
from lab.report import console
from lab.traffic import Traffic

VOTERS = ("web1", "cache1", "backup1")  # no machine more for them, as a small site has it
FAILOVER_SECONDS = 30  # until the first write that went well
REJOIN_SECONDS = 120
FROZEN_SECONDS = 30  # longer than what makes a silent leader one no more; while there are two, nobody is served
DOWN_SECONDS = 15
CUT_SECONDS = 35
CONTROL_SECONDS = 5  # of the same writer before, which has to be told that it has written


def write_alone(container: Container, seconds: int) -> int:
    """Try to write for so many seconds on the host itself; gives how often the writer was told that it had."""
    script = f"""
cd /; end=$((SECONDS + {seconds})); written=0
while [ $SECONDS -lt $end ]; do
  timeout 3 runuser -u postgres -- psql -XqAt -c 'insert into cut_off default values' > /dev/null 2>&1 && written=$((written + 1))
  sleep 0.3
done
echo written $written
"""
    said = container.exec_run(["bash", "-c", script]).output.decode(errors="replace")
    found = re.search(r"^written (\d+)$", said, re.M)
    if not found:
        raise MachineError(f"The writer on {container.name} said nothing that could be read: {said.strip()}")
    return int(found[1])


def vote_on(lab: Lab, voters: list[str]) -> None:
    """Remember where Patroni votes, in the lab's own inventory; nowhere ends it."""
    state = lab.load()
    state.voters = voters
    lab.save(state)
    lab.write_inventory(state.addresses)


def adopt(lab: Lab, made: Traffic) -> None:
    """A stage run readies etcd and takes nothing over; the operation does; a further run of both changes nothing that matters."""
    stage = lab.load().stage
    missing = set(VOTERS) - set(lab.load().addresses)
    if missing:
        raise MachineError(f"The lab {lab.name} has no {', '.join(sorted(missing))}. ./ladder up 5 makes it.")
    vote_on(lab, list(VOTERS))
    made.mark("a stage run readies etcd")
    said = play(lab, "patroni-ready", f"playbooks/stage{stage}.yml")
    if "Run playbooks/patroni-adopt.yml once." not in " ".join(said.split()):
        raise MachineError("The stage run did not say that playbooks/patroni-adopt.yml is left to run.")
    made.mark("Patroni takes over")
    play(lab, "patroni-adopt", "playbooks/patroni-adopt.yml")
    made.mark("Patroni leads")
    until_whole(lab, members(lab).primary)
    before = started(lab)
    made.mark("a stage run")
    play(lab, "patroni-again", f"playbooks/stage{stage}.yml")
    if started(lab) != before:
        raise MachineError("A stage run started PostgreSQL or Patroni anew.")
    play(lab, "patroni-status", "playbooks/replica-status.yml")


def leave(lab: Lab, made: Traffic) -> None:
    """The database goes back to its own units; from then on the lab's inventory says manual again."""
    need(lab)
    made.mark("Patroni gives back")
    play(lab, "patroni-leave", "playbooks/patroni-leave.yml")
    vote_on(lab, [])
    made.mark("PostgreSQL is on its own")
    play(lab, "patroni-left", f"playbooks/stage{lab.load().stage}.yml")
    play(lab, "patroni-status", "playbooks/replica-status.yml")


def switchover(lab: Lab, made: Traffic) -> None:
    """There and back, by Patroni; in between a stage run takes whoever leads, and failover.yml and rejoin.yml refuse."""
    need(lab)
    who = members(lab)
    made.mark(f"switchover to {who.replica}")
    play(lab, "patroni-switchover", "playbooks/switchover.yml", "-e", f"to={who.replica}")
    until_whole(lab, who.replica)
    before = started(lab)
    made.mark("a stage run")
    play(lab, "patroni-moved", f"playbooks/stage{lab.load().stage}.yml")
    if started(lab) != before:
        raise MachineError("A stage run started PostgreSQL or Patroni anew.")
    play(lab, "patroni-no-failover", "playbooks/failover.yml", fails="Patroni leads")
    play(lab, "patroni-no-rejoin", "playbooks/rejoin.yml", "-e", f"host={who.primary}", fails="Patroni leads")
    go_back(lab, made, who)
    until_whole(lab, who.primary)


def kill_primary(lab: Lab, made: Traffic) -> None:
    """The primary's host loses power: the first write goes well by itself, and the host is a replica when it is back."""
    need(lab)
    who, client = members(lab), commands.connect()
    container = client.containers.get(f"{lab.name}-{who.primary}")
    made.mark(f"{who.primary} loses power")
    container.kill()
    since = made.now
    try:
        written_again(made, since, FAILOVER_SECONDS)
    finally:
        container.start()
        lab.close_connections()
        hosts.wait_until_up(client, lab, who.primary, lab.load().addresses[who.primary])
    rejoins(lab, made, who)


def cut_primary(lab: Lab, made: Traffic) -> None:
    """The primary is cut off from the network: it acknowledges nothing, another leads, and it follows when it is back."""
    need(lab)
    who, state, client = members(lab), lab.load(), commands.connect()
    container, network = client.containers.get(f"{lab.name}-{who.primary}"), hosts.find_network(client, lab.name)
    if network is None:
        raise MachineError(f"The lab {lab.name} has no network. ./ladder up makes it.")
    ask(lab, who.primary, "create table if not exists cut_off (at timestamptz default now())")
    if not write_alone(container, CONTROL_SECONDS):
        raise MachineError(f"A writer on {who.primary} cannot write even while nothing is wrong, so nothing was tried.")
    made.mark(f"{who.primary} is cut off")
    network.disconnect(container)
    since = made.now
    try:
        written = write_alone(container, CUT_SECONDS)
        written_again(made, since, FAILOVER_SECONDS)
    finally:
        network.connect(container, ipv4_address=state.addresses[who.primary])
        lab.close_connections()
    hosts.wait_until_up(client, lab, who.primary, state.addresses[who.primary])
    console.print(f"While it was cut off, a writer on {who.primary} was told so often that it had written: {written}.")
    if written:
        raise MachineError(
            f"{who.primary} acknowledged writes while it was cut off, which {who.replica} does not have."
        )
    rejoins(lab, made, who)
    ask(lab, who.primary, "drop table cut_off")


def freeze(lab: Lab, made: Traffic) -> None:
    """Patroni hangs on the primary for longer than a leader may be silent; there is no watchdog. Nothing may be lost."""
    need(lab)
    who = members(lab)
    made.mark(f"Patroni hangs on {who.primary}")
    on(lab, who.primary, "systemctl kill --signal=STOP --kill-whom=main patroni.service")
    try:
        time.sleep(FROZEN_SECONDS)
    finally:
        on(lab, who.primary, "systemctl kill --signal=CONT --kill-whom=main patroni.service")
    since = made.now
    made.mark("it goes on")
    written_again(made, since, FAILOVER_SECONDS)
    rejoins(lab, made, who)


def etcd_minority(lab: Lab, made: Traffic) -> None:
    """Each member of etcd is away for a while, one after the other: nobody notices."""
    need(lab)
    before = started(lab)
    for host in lab.load().voters:
        made.mark(f"etcd is away on {host}")
        on(lab, host, "systemctl stop etcd.service")
        try:
            time.sleep(DOWN_SECONDS)
        finally:
            on(lab, host, "systemctl start etcd.service")
        time.sleep(DOWN_SECONDS)
    made.mark("all of etcd is there")
    if started(lab) != before:
        raise MachineError("PostgreSQL or Patroni started anew although two of three votes were there.")


def need(lab: Lab) -> None:
    if not lab.load().voters:
        raise MachineError(
            f"Patroni does not lead in the lab {lab.name}. ./ladder drill patroni-adopt has it take over."
        )


def cluster(lab: Lab, host: str) -> dict[str, dict[str, Any]]:
    """What patronictl says of each member; empty while it cannot."""
    said = on(lab, host, "timeout 20 patronictl -c /etc/patroni/config.yml list -f json || true")
    try:
        return {item["Member"]: item for item in json.loads(said)}
    except ValueError:
        return {}


def whole(lab: Lab, host: str) -> bool:
    """One leads, the others follow, and commits wait for one of them."""
    found = cluster(lab, host)
    roles = sorted(item["Role"] for item in found.values())
    followers = [item["State"] for item in found.values() if item["Role"] != "Leader"]
    return roles.count("Leader") == 1 and "Sync Standby" in roles and set(followers) == {"streaming"}


def until_whole(lab: Lab, host: str) -> float:
    """Wait until all follow; gives the seconds that took, raises MachineError with what the host says of them."""
    began = time.monotonic()
    while not whole(lab, host):
        if time.monotonic() - began > REJOIN_SECONDS:
            raise MachineError(f"After {REJOIN_SECONDS} s not all members follow; {host} says {cluster(lab, host)}.")
        time.sleep(1)
    return time.monotonic() - began


def started(lab: Lab) -> list[str]:
    """When PostgreSQL and Patroni started, on each host of the database."""
    who = members(lab)
    patroni = "systemctl show -p ExecMainStartTimestamp --value patroni.service"
    return [
        words
        for host in (who.primary, who.replica)
        for words in (ask(lab, host, "select pg_postmaster_start_time()"), on(lab, host, patroni).strip())
    ]


def rejoins(lab: Lab, made: Traffic, who: Members) -> None:
    """The former primary follows by itself and gets reads again; then it is made the primary once more."""
    made.mark(f"{who.primary} may come back")
    seconds = until_whole(lab, who.replica)
    console.print(f"{who.primary} followed by itself {seconds:.0f} s after it could.")
    if cluster(lab, who.replica).get(who.primary, {}).get("Role") == "Leader":
        made.mark(f"{who.primary} still leads")
        return
    wait_for(lab, who.primary, there=True)
    go_back(lab, made, who)
    until_whole(lab, who.primary)
