"""Who is primary, judged from what the hosts of `database` answered (role postgres, tasks_from: status).

`primary: {part: agree, to: db1}` refuses when the hosts say something else than the inventory (`to`); `switchover`, `failover`, `rejoin`,
`adopt` and `leave` refuse what cannot be done, and return who is concerned. Nothing is asked or changed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

CLOSE_BYTES = 16 * 1024 * 1024  # one WAL file: further behind, and a switchover would keep people waiting
PATRONICTL = "sudo patronictl -c /etc/patroni/config.yml"
# Only the old primary's disk has them.
COUNTED = "Commits are counted when it is back, by playbooks/rejoin.yml."
Found = Mapping[str, Mapping[str, Any]]


def position(lsn: str) -> int:
    """A WAL position (16/B374D848) as a number of bytes; 0 for none."""
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16) if low else 0


def named(hosts: list[str]) -> str:
    return " and ".join(hosts) if len(hosts) < 3 else ", ".join(hosts)


def running(found: Found, role: str) -> list[str]:
    return [host for host, one in found.items() if one["running"] and one["role"] == role]


def led(found: Found) -> list[str]:
    """The hosts whose PostgreSQL is Patroni's to start, stop and promote."""
    return [host for host, one in found.items() if one.get("manager") == "patroni"]


def two_primaries(found: Found) -> list[str]:
    primaries = running(found, "primary")
    if len(primaries) < 2:
        return []
    where = ", ".join(f"{host} on timeline {found[host]['timeline']}" for host in primaries)
    return [
        f"{named(primaries)} each say that they are the primary ({where}). Stop PostgreSQL on the one that nobody should write to "
        "(the higher timeline was promoted later), then run playbooks/rejoin.yml -e host=<it>."
    ]


def led_problems(found: Found) -> list[str]:
    """Why nothing should be done to members that Patroni leads: it is about to decide, or cannot."""
    primaries, patronis = running(found, "primary"), led(found)
    look = f"`{PATRONICTL} list` there and the journal of patroni.service say more."
    if len(primaries) > 1:
        return [f"{named(primaries)} each say that they are the primary, and Patroni leads {named(patronis)}. {look}"]
    if not primaries:
        return [
            f"There is no primary that runs, and Patroni, which leads {named(patronis)}, makes one by itself as soon as it can. {look}"
        ]
    if primaries[0] not in patronis:
        return [f"{primaries[0]} is the primary, and Patroni leads {named(patronis)} but not that one. {look}"]
    empty = [host for host, one in found.items() if one["role"] == "none"]
    return [
        f"{host} has no data, and who is led by Patroni is copied by nobody else. Run playbooks/patroni-leave.yml, then the stage's "
        "playbook, which copies it, then playbooks/patroni-adopt.yml."
        for host in empty
    ]


def disagreements(found: Found, wanted: str, automatic: bool = False) -> list[str]:
    """Why a stage run must not go on: the sentences; `wanted` is the inventory's primary."""
    primaries = running(found, "primary")
    if patronis := led(found):
        if automatic:
            return led_problems(found)
        return [
            f"Patroni leads {named(patronis)}, and site_database_failover is manual. Set site_database_failover: automatic in "
            "group_vars/site.yml, or have Patroni give the database back with playbooks/patroni-leave.yml."
        ]
    if len(primaries) > 1:
        return two_primaries(found)
    if primaries and primaries != [wanted]:
        return [
            f"{primaries[0]} is the primary, and the inventory says {wanted}. "
            f"Set site_database_primary: {primaries[0]} in group_vars/site.yml."
        ]
    with_data = [host for host, one in found.items() if one["role"] != "none"]
    if not primaries and with_data and found.get(wanted, {}).get("role") != "primary":
        return [
            f"There is no primary: {wanted}, which the inventory names, is {words(found.get(wanted))}, and {named(with_data)} "
            f"{'has' if len(with_data) == 1 else 'have'} data. playbooks/failover.yml makes a replica the primary."
        ]
    former = [host for host, one in found.items() if host != wanted and one["role"] == "primary"]
    return [
        f"{host} has the data of a primary and does not run, and {wanted} is the primary. playbooks/rejoin.yml -e host={host} "
        "makes it a replica."
        for host in former
    ]


def words(one: Mapping[str, Any] | None) -> str:
    if not one:
        return "no host that could be asked"
    if one["role"] == "none":
        return "without data"
    return f"a {one['role']}{'' if one['running'] else ' that does not run'}"


def switchover_problems(found: Found, to: str, slots: list[str]) -> list[str]:
    """Why `to` cannot take over from the running primary; `slots` are those of the members but `to`."""
    known = ", ".join(found)
    if not to:
        return [f"Say which replica becomes the primary: -e to=<one of {known}>."]
    if to not in found:
        return [f"to is {to}, and the group database has {known}. Name one of them."]
    patronis = led(found)
    if patronis and (problems := led_problems(found)):
        return problems
    primaries = running(found, "primary")
    if len(primaries) > 1:
        return two_primaries(found)
    if not primaries:
        return [f"No primary runs, so there is none to take over from. Run playbooks/failover.yml -e to={to}."]
    [primary], one = primaries, found[to]
    if primary == to:
        return [f"{to} is the primary already."]
    if not one["running"] or one["role"] != "replica":
        return [f"{to} is {words(one)}; only a running replica can take over."]
    problems = []
    if one["upstream"].get("state") != "streaming":
        problems.append(f"{to} receives nothing from {primary} (its receiver is {one['upstream'].get('state')}).")
    elif (behind := position(found[primary]["lsn"]) - position(one["replay_lsn"])) > CLOSE_BYTES:
        problems.append(
            f"{to} is {behind // 1024 // 1024} MB behind {primary}; people would wait until it has caught up. Try again later."
        )
    if one["replay_paused"]:
        problems.append(f"On {to} replay is paused. Let it go on: select pg_wal_replay_resume().")
    # Patroni makes its own when it needs them.
    missing = [] if patronis else sorted(set(slots) - {slot["name"] for slot in one["slots"]})
    if missing:
        problems.append(
            f"{to} keeps no replication slot for {named(missing)}. Run the stage's playbook, which makes it."
        )
    return problems


def most_advanced(found: Found) -> str:
    """The running replica that has received the most; the first of equals, empty when there is none."""
    replicas = running(found, "replica")
    return max(replicas, key=lambda host: (found[host]["timeline"], position(found[host]["lsn"])), default="")


def candidate_problems(status: Mapping[str, Any], name: str) -> list[str]:
    """Why Patroni would not have a member lead; `status` is what etcd has of the cluster."""
    if not status["reached"]:
        return [f"etcd could not be asked: {status['words']}."]
    if status["paused"]:
        return [f"Patroni is paused. `{PATRONICTL} resume` ends that."]
    if status["synchronous_mode"] and name not in status["synchronous"]:
        return [
            f"{name} is not the synchronous replica ({named(status['synchronous']) or 'there is none'}), and may lack the last commits. "
            "Wait until it is, or name that one."
        ]
    return []


def adopt_problems(found: Found, automatic: bool) -> list[str]:
    """Why Patroni cannot take the members over, or those that are left of them."""
    if not automatic:
        return [
            "site_database_failover is manual. Set site_database_failover: automatic in group_vars/site.yml, with three hosts in the group "
            "etcd, and run the stage's playbook, which readies them; then run this."
        ]
    if led(found):
        return led_problems(found)
    primaries = running(found, "primary")
    if len(primaries) != 1:
        return two_primaries(found) or ["There is no primary that runs, and Patroni takes over one that serves."]
    return [
        f"{host} is {words(one)}, and Patroni takes over replicas that follow {primaries[0]}. Run the stage's playbook, or "
        f"playbooks/rejoin.yml -e host={host}."
        for host, one in found.items()
        if host != primaries[0] and (one["role"] != "replica" or one["upstream"].get("state") != "streaming")
    ]


def leave_problems(found: Found) -> list[str]:
    """Why Patroni cannot give the members back."""
    patronis = led(found)
    if not patronis:
        return ["Patroni leads no host of the group database, so there is nothing to give back."]
    return [problem for problem in led_problems(found) if "has no data" not in problem]


def failover_problems(found: Found, to: str) -> list[str]:
    """Why no replica can be promoted; `found` has only the hosts that answered."""
    if patronis := led(found):
        return [
            f"Patroni leads {named(patronis)} and puts a replica in the place of a primary that is lost by itself, within half a minute. "
            "playbooks/replica-status.yml says how it is, docs/operations/automatic-failover.md what to do when it does not."
        ]
    if primaries := running(found, "primary"):
        return two_primaries(found) or [
            f"{primaries[0]} runs and is the primary, so nothing failed. playbooks/switchover.yml moves it; if it has to go at once, "
            f"stop PostgreSQL there first."
        ]
    best = most_advanced(found)
    if not best:
        state = "; ".join(f"{host} is {words(one)}" for host, one in found.items()) or "no host of database answers"
        return [
            f"There is no running replica to promote: {state}. docs/operations/failover.md says what is left to try."
        ]
    if to and (to not in found or found[to]["role"] != "replica" or not found[to]["running"]):
        return [
            f"to is {to}, which is {words(found.get(to))}. Leave to out, or name one of {named(running(found, 'replica'))}."
        ]
    if to and (behind := position(found[best]["lsn"]) - position(found[to]["lsn"])) > 0:
        return [f"{to} has {behind} bytes less than {best}, which would be lost. Leave to out, or say -e to={best}."]
    return []


def lost_words(found: Found, to: str) -> str:
    """What could be lost when `to` takes over, as far as those who answered know.

    A replica knows what it heard last, for as long as its receiver waits for the primary; a former primary that answers and does not run
    knows where its last checkpoint began.
    """
    # No primary of an earlier failover.
    same = [one for one in found.values() if one["timeline"] == found[to]["timeline"]]
    heard = {one["primary_lsn"] for one in same if one["running"]}
    heard |= {one["lsn"] for one in same if one["role"] == "primary" and not one["running"]}
    if not (last := max(heard, key=position, default="")):
        return f"how much the primary wrote after that, nobody who answers knows. {COUNTED}"
    missing = position(last) - position(found[to]["lsn"])
    if missing > 0:
        return f"the primary was at {last} or later: at least {missing} bytes of what it wrote would be lost. {COUNTED}"
    return f"the primary was at {last} when it was last heard of: of that nothing would be lost, of what came later everything. {COUNTED}"


def rejoin_problems(found: Found, host: str) -> list[str]:
    """Why `host` cannot become a replica of the primary there is."""
    if patronis := led(found):
        return [
            f"Patroni leads {named(patronis)}: a former primary becomes a replica by itself when patroni.service runs there. One that "
            f"cannot is copied anew with `{PATRONICTL} reinit <site_name> <member>`, as docs/operations/automatic-failover.md says."
        ]
    known = ", ".join(found)
    if host not in found:
        return [
            f"host is {host or 'not given'}, and of the group database {known} could be asked. Say -e host=<one of them>."
        ]
    others = {name: one for name, one in found.items() if name != host}
    primaries = running(others, "primary")
    if len(primaries) != 1:
        if running(found, "primary") == [host]:
            return [f"{host} is the primary and runs, so there is nothing to rejoin."]
        return two_primaries(others) or [
            f"No other host than {host} is a primary that runs. Promote one first: playbooks/failover.yml."
        ]
    if found[host]["role"] == "none":
        return [f"{host} has no data: it is made a replica by the stage's playbook."]
    return []


def size(number: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1024 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def patroni_report(statuses: Found) -> tuple[list[str], list[str]]:
    """A line about Patroni's cluster, and the sentences for what keeps it from acting; `statuses` has each member's answer."""
    problems = [f"{host} cannot ask etcd: {one['words']}." for host, one in statuses.items() if not one["reached"]]
    one = next((one for one in statuses.values() if one["reached"]), None)
    if one is None:
        return [], problems
    if one["paused"]:
        problems.append(f"Patroni is paused, and nobody takes a lost primary's place. `{PATRONICTL} resume` ends that.")
    if not one["leader"]:
        problems.append("Nobody leads in Patroni.")
    if one["synchronous_mode"] and not one["synchronous"]:
        problems.append("No replica is synchronous, so that nobody could take a lost primary's place.")
    silent = sorted(item["name"] for item in one["members"] if item["state"] not in ("running", "streaming"))
    problems += [f"Patroni says that {name} neither leads nor follows." for name in silent]
    there = f"{one['leader'] or 'nobody'} leads, {named(one['synchronous']) or 'nobody'} could take its place"
    return [f"Patroni: {there}."], problems


def report(found: Found, away: list[str], most_seconds: float) -> tuple[list[str], list[str]]:
    """The lines of a table about all members, and the sentences for what is not well."""
    line = "{:<16} {:<10} {:>8} {:>16} {:>12} {:>12}  {}"
    lines = [line.format("host", "role", "timeline", "at", "behind", "seconds", "slots that it keeps")]
    problems = [f"{host} does not answer." for host in away] + two_primaries(found)
    if not running(found, "primary"):
        problems.append("There is no primary that runs.")
    for host, one in found.items():
        kept = [
            f"{slot['name']} {size(slot['retained_bytes'])}{'' if slot['active'] else ', nobody reads it'}"
            for slot in one["slots"]
            if slot["retained_bytes"] or slot["active"]
        ]
        behind = "" if one["lag_bytes"] is None else size(one["lag_bytes"])
        seconds = "" if one["lag_seconds"] is None else f"{one['lag_seconds']:g}"
        role = one["role"] if one["running"] else f"({one['role']})"
        lines.append(line.format(host, role, one["timeline"], one["lsn"], behind, seconds, "; ".join(kept) or "-"))
        problems += [
            f"The slot {slot['name']} on {host} was lost: that replica has to be copied anew."
            for slot in one["slots"]
            if slot["wal_status"] == "lost"
        ]
        if not one["running"]:
            problems.append(f"PostgreSQL on {host} does not run.")
        elif one["role"] == "replica" and one["upstream"].get("state") != "streaming":
            problems.append(f"{host} receives nothing from a primary.")
        elif one["role"] == "replica" and (one["lag_seconds"] or 0) > most_seconds:
            problems.append(
                f"{host} is {one['lag_seconds']:g} s behind (site_replica_lag_seconds is {most_seconds:g})."
            )
        waiting = one["synchronous"]
        if waiting["on"] and not waiting["there"] and one["role"] == "primary":
            problems.append(
                f"{host} waits for a synchronous replica, and there is none: {waiting['waiting_commits']} commits wait."
            )
    return lines, problems


class ActionModule(ActionBase):
    """See the module's docstring."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        known = task_vars or {}
        hosts = list(known["groups"].get("database") or [])
        hostvars = {host: known["hostvars"][host] for host in hosts}
        found = {host: values["postgres_status"] for host, values in hostvars.items() if "postgres_status" in values}
        patroni = {host: values["patroni_status"] for host, values in hostvars.items() if "patroni_status" in values}
        away = [host for host in hosts if host not in found]
        wanted = str(self._task.args.get("to") or "")
        part = self._task.args.get("part")
        if part == "report":
            lines, problems = report(found, away, float(self._task.args["lag_seconds"]))
            led_lines, led_words = patroni_report(patroni)
            return {**result, "changed": False, "lines": lines + led_lines, "problems": problems + led_words}
        automatic = bool(self._task.args.get("automatic"))
        if part == "agree":
            problems = disagreements(found, wanted, automatic)
        elif part == "adopt":
            problems = adopt_problems(found, automatic)
        elif part == "leave":
            problems = leave_problems(found)
        elif part == "switchover":
            names = dict(zip(hosts, self._task.args["names"], strict=True))
            problems = switchover_problems(found, wanted, [name for host, name in names.items() if host != wanted])
            if not problems and (status := patroni.get(wanted)):
                problems = candidate_problems(status, names[wanted])
        elif part == "failover":
            problems = failover_problems(found, wanted)
        elif part == "rejoin":
            problems = rejoin_problems(found, wanted)
        else:
            raise AnsibleActionFail(f"primary: part is {part!r}.")
        if problems:
            raise AnsibleActionFail(" ".join([*problems, "Nothing was changed."]))
        if part == "failover":
            result["lost"] = lost_words(found, wanted or most_advanced(found))
        rest = {name: one for name, one in found.items() if part != "rejoin" or name != wanted}
        result.update(
            changed=False,
            primary=next(iter(running(rest, "primary")), ""),
            to=wanted or most_advanced(found),
            away=away,
            led=led(found),
            unled_primary=[host for host in running(found, "primary") if host not in led(found)],
            unled_replicas=[host for host in running(found, "replica") if host not in led(found)],
        )
        return result
