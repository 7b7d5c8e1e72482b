"""Refuse an inventory that does not fit, before anything changes, with one sentence per problem.

`preflight: {part: inventory, groups: {web: ..., database: ...}, stage: 1}` looks at the inventory on the controller alone;
`preflight: {part: host}` asks one host for its facts and clock in one remote call and keeps the answer;
`preflight: {part: verdict}` reads all answers and names every problem at once.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import ipaddress
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ansible import context
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as core_version

KIT = Path(__file__).resolve().parents[2]
ANSIBLE_CORE = ((2, 19), (2, 20))  # from, and the first that has not been tried
SINGLE = ("cache", "backup")  # groups of which the site uses one host
GROUP_STAGES = {
    "cache": 2,
    "worker": 3,
    "edge": 4,
}  # the stage that a group's layer comes with; those of stage 1 are always run
REPLICA_STAGE = 5  # the first with more than one host in database
VOTERS = (3, 5)  # of which one may be lost, or two; any other number outlives no more
# What Patroni decides for all members, as roles/postgres leaves it out of its files.
PATRONIS = {
    "listen_addresses", "port", "cluster_name", "wal_level", "hot_standby", "max_connections", "max_wal_senders", "wal_keep_size",
    "max_prepared_transactions", "max_locks_per_transaction", "track_commit_timestamp", "max_replication_slots",
    "max_worker_processes", "wal_log_hints", "primary_conninfo", "primary_slot_name", "synchronous_standby_names",
}  # fmt: skip
NOTICED_SECONDS = 4  # until HAProxy has seen that a replica is behind, and PgBouncer's reads have moved
KIT_GROUPS = {"web", "database", "backup", *GROUP_STAGES}
DISTRIBUTIONS = {"Debian": ("12", "13")}
# `hardware` holds the memory and the processors, `platform` the names, `network` the addresses.
FACTS = [
    "!all",
    "!min",
    "distribution",
    "hardware",
    "platform",
    "network",
    "date_time",
    "python",
    "service_mgr",
    "virtual",
]
# What the roles judge by themselves, and preflight asks before they would: file and function.
BASE = "base/filter_plugins/base.py:base_administrator_problems"
FIREWALL = "firewall/filter_plugins/firewall.py:firewall_problems"
LIMITS = "haproxy/filter_plugins/haproxy_problems.py:limits"
TEMPLATE = re.compile(r"\{[{%#]")
ARTIFACT = re.compile(r"p[0-9a-f]{12}")  # a revision whose archive the controller has: its folder is not needed
UNDEFINED = re.compile(r"'(\w+)' is undefined")
UNSET = re.compile(r"\w+ uses (\w+), which is not set")
BATCH = re.compile(r"[1-9][0-9]*%?")
S3_NEEDS = ("bucket", "endpoint", "region", "key", "key_secret")
LEAST_POOL = 4  # connections of a pool: two for each of the two processes of a pooler
POOLER_POSTGRES = 17  # the first that takes TLS from the first byte, as HAProxy does it
# The least of roles' variables of which a run with fewer would end in its midst.
LEAST = {
    "pgbackrest_retention_full": 1, "pgbackrest_retention_differential": 1,
    "restic_keep_daily": 1, "restic_keep_weekly": 0, "restic_keep_monthly": 0,
}  # fmt: skip
FOR_WEB = ("edge", "worker")  # what they do is for the hosts of web
MEMORY_TOLERANCE = 1.001  # sums of decimal shares are not exact


def core_problem(version: str = core_version) -> str | None:
    """The sentence for an ansible-core that the kit has not been tried with, or None."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if ANSIBLE_CORE[0] <= found < ANSIBLE_CORE[1]:
        return None
    wanted = ".".join(map(str, ANSIBLE_CORE[0]))
    return (
        f"ansible-core is {version}; the kit is tried with {wanted}. Install it with: pip install -r requirements.txt"
    )


@functools.cache
def load(path: Path) -> ModuleType:
    """A Python file of the kit that Ansible's own loaders would not give to an action."""
    spec = importlib.util.spec_from_file_location(f"stepladder_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


values = load(KIT / "plugins/values.py")


@functools.cache
def read_yaml(path: Path) -> Any:
    """What a YAML file of the kit holds; a whole run's files are read by libyaml, in a tenth of the time."""
    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


@functools.cache
def role_variables(kit: Path = KIT) -> dict[str, dict[str, Any]]:
    """The description of every role's variable, as its argument specs have it."""
    found: dict[str, dict[str, Any]] = {}
    for specs in sorted(kit.glob("roles/*/meta/argument_specs.yml")):
        for entry in read_yaml(specs)["argument_specs"].values():
            for name, spec in (entry.get("options") or {}).items():
                found.setdefault(name, spec)
    return found


@functools.cache
def defaults(kit: Path = KIT) -> dict[str, Any]:
    """What the wiring sets, settings' defaults included, as it is written."""
    return {name: value for path in (kit / "group_vars/all").glob("*.yml") for name, value in read_yaml(path).items()}


def known_variables(kit: Path = KIT) -> set[str]:
    """Every variable that a role, a setting or the wiring knows."""
    return {*settings(kit), *role_variables(kit), *defaults(kit)}


def settings(kit: Path = KIT) -> dict[str, dict[str, Any]]:
    """The settings of a site as plugins/settings.yml describes them, with the fields of roles' variables like them."""
    described = read_yaml(kit / "plugins/settings.yml")
    roles = role_variables(kit)
    return {
        name: {"options": roles[spec["like"]]["options"], **spec} if "like" in spec else spec
        for name, spec in described.items()
    }


def is_plain(value: Any) -> bool:
    """Whether a value needs neither a template nor a vault's key to be read."""
    if isinstance(value, str):
        return not TEMPLATE.search(value)
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, (int, float))


def prefixes(kit: Path = KIT) -> tuple[str, ...]:
    roles = [path.name for path in (kit / "roles").iterdir() if path.is_dir() and not path.name.startswith("_")]
    return (*(f"{role}_" for role in sorted(roles)), "site_", "host_")


def unknown_problems(names_by_host: Mapping[str, Iterable[str]], known: set[str], starts: tuple[str, ...]) -> list[str]:
    """One sentence per variable that begins like one of the kit's and is none, with the closest that it has."""
    where: dict[str, list[str]] = defaultdict(list)
    for host, names in names_by_host.items():
        for name in names:
            if name.startswith(starts) and name not in known:
                where[name].append(host)
    problems = []
    for name, hosts in sorted(where.items()):
        close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
        advice = f"Did you mean {close[0]}?" if close else "See docs/settings.md for those that there are."
        problems.append(
            f"{name} is set for {listed(hosts)}, and the kit knows no such variable. {advice} "
            "(A variable of your own with such a name goes into site_own_variables.)"
        )
    return problems


def on_command_line(name: str, problem: str, given: Iterable[str] | None = None) -> str:
    """The sentence for a setting that came by -e name=value, which makes text of everything; `given` has what follows each -e."""
    given = context.CLIARGS.get("extra_vars") or () if given is None else given
    if not any(re.match(rf"(\S+=\S*\s+)*{re.escape(name)}=", text) for text in given):
        return problem
    return re.sub(
        r"Write it (?:without quotes|in brackets): (.*)\.$",
        lambda advice: f"What -e {name}=... gives is text; write -e '{{\"{name}\": {advice[1]}}}'.",
        problem,
    )


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a sentence: "a, b and 3 more"."""
    names = sorted(set(names))
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return ", ".join(names)


def placed(names: Iterable[str], everyone: Iterable[str], most: int = 5) -> str:
    """Where something was found, for a sentence: the hosts, or that it is all of them where naming them would help nobody."""
    names, everyone = set(names), set(everyone)
    return "all hosts" if names == everyone and len(names) > most else listed(names, most)


def group_problems(groups: Mapping[str, list[str]], needed: Mapping[str, str], kit_groups: Iterable[str]) -> list[str]:
    problems = [
        f"The group {group} has no host, and this stage needs one: {reason}. Add a host to {group} in the inventory."
        for group, reason in needed.items()
        if not groups.get(group)
    ]
    problems += [
        f"The group {group} has {listed(groups[group])}, and the group web, which it is for, has no host. "
        "Add a host to web in the inventory."
        for group in FOR_WEB
        if groups.get(group) and not groups.get("web") and "web" not in needed
    ]
    site = set(groups.get("site") or [])
    for group in kit_groups:
        outside = set(groups.get(group) or []) - site
        if outside:
            problems.append(
                f"{listed(outside)} in group {group} does not belong to the group site, so group_vars/site.yml does not "
                f"reach it. List {group} under site's children in the inventory."
            )
    return problems


def misspelt_problems(groups: Mapping[str, list[str]]) -> list[str]:
    """One sentence per group that is called almost like one of the kit's and has hosts that are not in that."""
    problems = []
    for group in sorted(set(groups) - KIT_GROUPS - {"all", "ungrouped", "site"}):
        close = difflib.get_close_matches(group, sorted(KIT_GROUPS), n=1, cutoff=0.8)
        if close and set(groups[group]) - set(groups.get(close[0]) or []):
            problems.append(
                f"The inventory has a group {group}, and the kit knows none of that name: nothing would be done for "
                f"{listed(groups[group])}. Did you mean {close[0]}?"
            )
    return problems


def stage_problems(groups: Mapping[str, list[str]], stages: Mapping[str, int], stage: int) -> list[str]:
    """The sentence for a group that comes with a higher stage than the one that is run; `stages` has each group's first."""
    higher = {group: first for group, first in stages.items() if first > stage and groups.get(group)}
    if not higher:
        return []
    return [
        f"The inventory has hosts in {listed(higher)}, which stage {stage} does not run: the site would look for them in "
        f"vain. Run playbooks/stage{max(higher.values())}.yml."
    ]


def fleet_problems(groups: Mapping[str, list[str]], stage: int) -> list[str]:
    """The sentence for several web hosts where no load balancer would send anyone to the others."""
    web = groups.get("web") or []
    if len(web) < 2 or groups.get("edge") or not stage:
        return []
    return [
        f"The group web has {listed(web)}, and without a host in edge nothing shares the visitors among them. Add a host to "
        "edge and run playbooks/stage4.yml, or leave one host in web."
    ]


def edge_tls_problems(groups: Mapping[str, list[str]], tls: str) -> list[str]:
    """The sentence for several edges that would each have to prove the site's names to a certificate authority."""
    edges = groups.get("edge") or []
    if len(edges) < 2 or tls != "letsencrypt":
        return []
    return [
        f"site_tls is letsencrypt and the group edge has {listed(edges)}: only the one that the names lead to could prove "
        "them. Set site_tls: files with a certificate of your own, or leave one host in edge."
    ]


def virtual_address_problems(groups: Mapping[str, list[str]], address: str) -> list[str]:
    """The sentence for a shared address that nobody could share, or that is none."""
    if not address:
        return []
    edges = groups.get("edge") or []
    try:
        right = "/" in address and bool(ipaddress.ip_interface(address))
    except ValueError:
        right = False
    if not right:
        return [f"site_virtual_address is {address!r}. Write an address with the bits of its network: 192.0.2.9/24."]
    if len(edges) < 2:
        return [
            f"site_virtual_address is {address} and the group edge has {listed(edges) or 'no host'}: an address is shared by two "
            "edges or more. Add one, or leave the setting empty."
        ]
    return []


def single_problems(groups: Mapping[str, list[str]]) -> list[str]:
    """One sentence per group that has more hosts than the site would use."""
    return [
        f"The group {group} has {listed(groups[group])}, and the site uses one host of it. Leave one in the inventory."
        for group in SINGLE
        if len(groups.get(group) or []) > 1
    ]


def queue_problems(queues: Iterable[str], consumed: Mapping[str, Iterable[str]], routed: Iterable[str]) -> list[str]:
    """One sentence per queue that nobody consumes, and per worker of a queue that there is not.

    `consumed` has, by worker ("default on worker1"), the queues that it consumes; `routed` those that site_settings send to.
    """
    queues, known = set(queues), listed(queues) or "none"
    served = {queue for names in consumed.values() for queue in names}
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)  # the same worker on several hosts is one problem
    for worker, names in sorted(consumed.items()):
        if set(names) - queues:
            name, _, host = worker.partition(" on ")
            wrong[name, listed(set(names) - queues)].append(host)
    problems = [
        f"The worker {name} on {listed(hosts)} consumes {unknown}, and site_queues has {known}. "
        "Correct the queues of the worker in site_workers, or add the queue to site_queues."
        for (name, unknown), hosts in wrong.items()
    ]
    for queue in sorted((queues | set(routed)) - served):
        where = "site_queues has" if queue in queues else "site_settings send tasks to"
        problems.append(
            f"Nobody consumes the queue {queue}, which {where}: its tasks would wait for ever. "
            "Add it to the queues of a worker in site_workers, or take it out."
        )
    return problems


def routed_queues(own: Mapping[str, Any]) -> set[str]:
    """The queues that Celery's settings among site_settings name."""
    found = {own["CELERY_TASK_DEFAULT_QUEUE"]} if own.get("CELERY_TASK_DEFAULT_QUEUE") else set()
    routes = own.get("CELERY_TASK_ROUTES") or {}
    for route in routes.values() if isinstance(routes, Mapping) else []:
        queue = route.get("queue") if isinstance(route, Mapping) else route
        found |= {queue} if isinstance(queue, str) else set()
    return found


def beat_problems(beats: list[str], chosen: str, workers: list[str]) -> list[str]:
    """The sentence for a fleet in which not exactly one host sends the periodic tasks."""
    if len(beats) > 1:
        return [
            f"{listed(beats)} would each send every periodic task. Leave celery_beat alone, and set site_beat_host to one of them."
        ]
    if not beats:
        return [
            f"site_beat_host is {chosen!r}, which is no host of worker ({listed(workers)}), so nobody would send the "
            "periodic tasks. Set it to one of them."
        ]
    return []


def broker_problems(url: str, cache: list[str], settings: Mapping[str, Any]) -> list[str]:
    """The sentences for a broker that is not there, is not safe, or loses tasks. They never show the address."""
    if url:
        if not re.match(r"(amqps|rediss)://[^/\s]+", url):
            return [
                "site_broker_url does not begin with amqps:// or rediss:// and a host: tasks and their login would travel in "
                "clear text, or nowhere. Use the broker's TLS port."
            ]
        return []
    if not cache:
        return [
            "The group worker has hosts and tasks have no broker: the group cache is empty, and so is site_broker_url. "
            "Add a host to cache, or set site_broker_url."
        ]
    policy = str(settings.get("maxmemory-policy", "noeviction"))
    if policy != "noeviction":
        return [
            f"site_broker_settings sets maxmemory-policy to {policy}: a full broker would throw tasks away. Take it out; "
            "cache settings belong in redis_settings."
        ]
    return []


def limit_problems(limits: Mapping[str, int], visibility: int, redis: bool) -> list[str]:
    """The sentence for tasks that may run for longer than the broker waits for them; seconds by worker."""
    longest = max(limits, key=lambda worker: limits[worker], default=None)
    if not redis or longest is None or limits[longest] < visibility:
        return []
    return [
        f"A task of the worker {longest} may run for {limits[longest]} s, and after {visibility} s (site_visibility_timeout) "
        "the broker gives it to a second worker as well. Lower the time limit, or raise site_visibility_timeout."
    ]


def line_break_problems(passwords: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One sentence per password that no line of a configuration can hold; `passwords` has each by its name and by host."""
    problems = []
    for name, by_host in sorted(passwords.items()):
        broken = [host for host, value in by_host.items() if re.search(r"[\r\n\0]", value)]
        if broken:
            problems.append(
                f"{name} has a line break in it on {listed(broken)}, which no configuration file can hold. Write it on one "
                "line (in YAML: no \\n in quotes, |- in place of |)."
            )
    return problems


def address_problems(addresses: Mapping[str, str]) -> list[str]:
    """One sentence per address that several hosts share."""
    by_address: dict[str, list[str]] = defaultdict(list)
    for host, address in addresses.items():
        by_address[address].append(host)
    return [
        f"{listed(hosts)} have the same address {address}. Give each host its own, or list one host in several groups."
        for address, hosts in sorted(by_address.items())
        if len(hosts) > 1
    ]


def memory_problem(host: str, shares: Mapping[str, Any]) -> str | None:
    """The sentence for shares that add up to more than the host has."""
    numbers = all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares.values())
    if not numbers:
        return f"site_memory_shares on {host} must be numbers between 0 and 1; found {dict(shares)}."
    total = sum(shares.values())
    if total <= MEMORY_TOLERANCE:
        return None
    parts = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    return f"The memory shares of {host} add up to {total:g} of what it has ({parts}). Lower them to 1 or less in site_memory_shares."


def by_value(found: Mapping[str, str]) -> str:
    """Who has which value, for a sentence: "17 on db1 and 15 on db2"; empty when all have the same."""
    hosts: dict[str, list[str]] = defaultdict(list)
    for host, value in found.items():
        hosts[value or "empty"].append(host)
    return " and ".join(f"{value} on {listed(theirs)}" for value, theirs in hosts.items()) if len(hosts) > 1 else ""


def primaries_problems(names: Mapping[str, str], groups: Mapping[str, list[str]]) -> list[str]:
    """The sentence for hosts that would take different ones for the primary, or one that is none; `names` by host."""
    if parts := by_value(names):
        return [
            f"site_database_primary is {parts}, and all hosts have to mean the same one. Set it once, in group_vars/site.yml."
        ]
    return primary_host_problems(next(iter(names.values()), ""), groups)


def version_problems(versions: Mapping[str, str], pooler: bool) -> list[str]:
    """The sentences for major versions of the database's hosts that do not go together, or that a pooler cannot reach."""
    problems = []
    if parts := by_value(versions):
        problems.append(
            f"PostgreSQL would be {parts}, and a replica has its primary's version. Set postgres_version once, in "
            "group_vars/site.yml, or use one release of Debian for the group database."
        )
    if pooler and (old := {host: one for host, one in versions.items() if int(one) < POOLER_POSTGRES}):
        problems.append(
            f"PostgreSQL on {listed(old)} is version {min(old.values(), key=int)}, and the pooler's way to it (TLS from the first "
            f"byte) came with {POOLER_POSTGRES}. Use Debian 13 for the group database, or leave site_pooler and a second host out."
        )
    return problems


def primary_host_problems(name: str, groups: Mapping[str, list[str]]) -> list[str]:
    """The sentence for a primary that is no host of the database."""
    hosts = groups.get("database") or []
    if not name or name in hosts:
        return []
    return [
        f"site_database_primary is {name}, and the group database has {listed(hosts) or 'no host'}. Name one of them."
    ]


def failover_problems(
    groups: Mapping[str, list[str]], pooler: bool, addresses: Mapping[str, str], own: Iterable[str], synchronous: int
) -> list[str]:
    """Why site_database_failover cannot be automatic; `own` are the names in postgres_settings."""
    votes, databases = groups.get("etcd") or [], groups.get("database") or []
    problems = []
    if len(votes) not in VOTERS:
        problems.append(
            f"the group etcd has {listed(votes) or 'no host'}, and Patroni votes on three hosts, of which one may be lost, or on five. "
            "They may be hosts of other groups too"
        )
    if outside := set(votes) - set(groups.get("site") or []):
        problems.append(
            f"{listed(outside)} in group etcd does not belong to the group site. List etcd under site's children"
        )
    if len(databases) < 2:
        problems.append(
            f"the group database has {listed(databases) or 'no host'}, and nobody could take its place. Add a replica"
        )
    if not pooler:
        problems.append("site_pooler is false, and the site would not find the new primary. Take it out")
    if odd := sorted(host for host in {*votes, *databases} if ":" in addresses.get(host, "")):
        problems.append(f"{listed(odd)} has an IPv6 address as host_address. Give it a name or an IPv4 address there")
    if theirs := PATRONIS & set(own):
        problems.append(f"postgres_settings has {listed(theirs)}, which Patroni decides. Use patroni_parameters")
    if synchronous:
        problems.append(
            f"postgres_synchronous_replicas is {synchronous}, and Patroni decides for whom commits wait (patroni_synchronous). Take it out"
        )
    return [f"site_database_failover is automatic, but {problem}. Or set it to manual." for problem in problems]


def replica_stage_problems(groups: Mapping[str, list[str]], stage: int) -> list[str]:
    """The sentence for several hosts of the database where no stage makes replicas of them."""
    hosts = groups.get("database") or []
    if len(hosts) < 2 or not stage or stage >= REPLICA_STAGE:
        return []
    return [
        f"The group database has {listed(hosts)}, and stage {stage} knows one primary without replicas. Run "
        f"playbooks/stage{REPLICA_STAGE}.yml, or leave one host in database."
    ]


def read_own_writes_problems(seconds: int, lag: int) -> list[str]:
    """The sentence for writers who could be sent to a replica that does not have what they wrote."""
    if seconds >= lag + NOTICED_SECONDS:
        return []
    return [
        f"site_read_own_writes_seconds is {seconds}, and a replica may be {lag} s behind (site_replica_lag_seconds) and stays in use "
        f"for {NOTICED_SECONDS} s more: people would miss what they have just written. Set it to {lag + NOTICED_SECONDS} or more."
    ]


def repository_problems(groups: Mapping[str, list[str]], keeper: str, said: bool, store: bool) -> list[str]:
    """The sentence for backups that would be lost with the database; `said` is that it is meant, `store` that they lie elsewhere.

    Where nobody named a host and none was left, and on a site that is one machine, each run warns.
    """
    named = keeper in (groups.get("backup") or []) and keeper in (groups.get("database") or [])
    if said or store or not named or len(set(groups.get("site") or [])) < 2:
        return []
    return [
        f"The backups of the database would lie on {keeper}, which is a host of the database, and be lost with it. Add a host that is "
        "not in database to the group backup, or set site_backup_s3; if it is meant so, set pgbackrest_same_machine: true in "
        "group_vars/site.yml."
    ]


def pooler_problems(
    opened: Mapping[str, int], own: Iterable[str], takes: Mapping[str, int], reserve: int, needed: int
) -> list[str]:
    """The sentence for poolers that could open more connections than the database takes, or that have too few each.

    `opened` has what each host with a pooler may open, `own` names those whose number a person wrote; `takes` has what each host of
    the database takes, of which `reserve` stay for everything else; a pooler needs `needed`.
    """
    if not opened or not takes:
        return []
    if few := {host: opened[host] for host in own if opened[host] < needed}:
        number = next(iter(few.values()))
        return [
            f"pgbouncer_server_connections is {number} on {listed(few)}, and a pooler needs {needed}. Set it to {needed} or more, or "
            "take it out of group_vars/site.yml: then the hosts share what the database takes."
        ]
    narrow = min(takes, key=lambda host: takes[host])
    left = takes[narrow] - reserve
    each, own = left // len(opened), set(own)
    if len(own) < len(opened) and each < needed:
        return [
            f"{len(opened)} hosts with a pooler would share the {takes[narrow]} connections of PostgreSQL less {reserve} for everything "
            f"else, which leaves each {max(each, 0)}, and a pooler needs {needed}. Set postgres_max_connections: "
            f"{needed * len(opened) + reserve} or more in group_vars/site.yml."
        ]
    total = sum(opened.values())
    if total <= left:
        return []
    numbers = ", ".join(f"{host} {opened[host]}" for host in list(opened)[:5])
    lower = f"pgbouncer_server_connections: {each} or less, or " if each >= needed else ""
    return [
        f"The poolers may open {total} connections together (pgbouncer_server_connections: {numbers}{', ...' if len(opened) > 5 else ''}), "
        f"and PostgreSQL on {narrow} takes {takes[narrow]}, of which {reserve} stay for everything else. Set {lower}"
        f"postgres_max_connections: {total + reserve} or more in group_vars/site.yml."
    ]


def synchronous_problems(wanted: int, databases: list[str]) -> list[str]:
    """The sentence for commits that would wait for more replicas than there are."""
    others = max(len(databases) - 1, 0)
    if wanted <= others:
        return []
    return [
        f"postgres_synchronous_replicas is {wanted}, and the group database has {listed(databases)}, {others} besides the primary: no "
        "commit would ever end. Lower it, or add hosts to database."
    ]


def store_problems(store: Any, needed: Iterable[str]) -> list[str]:
    """The sentence for a store of backups that lacks what every one of them needs."""
    if not store or not isinstance(store, Mapping) or not (lacks := [name for name in needed if not store.get(name)]):
        return []
    return [f"site_backup_s3 has no {listed(lacks)}. Give it {listed(needed)}."]


def batches_problems(batches: Any) -> list[str]:
    """The sentence for deploy_batches that Ansible cannot go by: it takes numbers of hosts, and parts of them as a percentage."""
    if batches is None:
        return []
    each = batches if isinstance(batches, list) else [batches]
    odd = [str(one) for one in each if not BATCH.fullmatch(str(one))]
    if each and not odd:
        return []
    return [
        f"deploy_batches has {listed(odd) or 'nothing in it'}. Give numbers of hosts or percentages, "
        """-e '{"deploy_batches": [1, "50%"]}' say."""
    ]


def media_host_problems(name: str, groups: Mapping[str, list[str]]) -> list[str]:
    """The sentence for uploads that would be kept on a host that does not run the site."""
    web = groups.get("web") or []
    if not name or name in web:
        return []
    return [
        f"site_media_host is {name}, and the group web has {listed(web) or 'no host'}. Name one of them; docs/operations/media.md "
        "says how to move the uploads."
    ]


def host_problems(answers: Mapping[str, Mapping[str, Any]], tolerance: float) -> list[str]:
    """The sentences for what the hosts answered: unreachable, not supported, clocks apart."""
    problems = []
    silent = {host: answer["unreachable"] for host, answer in answers.items() if answer.get("unreachable")}
    if silent:
        first = next(iter(silent.values()))
        advice = "Mend the connection or the inventory."
        if "Host key verification failed" in first:
            advice = "Log in to each once with ssh, compare the key that it shows, and accept it."
        problems.append(f"Not reachable over SSH: {listed(silent, most=50)} ({first}). {advice}")
    for host, answer in answers.items():
        if answer.get("failed"):
            problems.append(f"{host} answers but cannot run Ansible: {answer['failed']}")
        if answer.get("unreachable") or answer.get("failed"):
            continue
        name, version = answer["distribution"], answer["version"]
        if version not in DISTRIBUTIONS.get(name, ()):
            problems.append(
                f"{host} runs {name} {version}; the kit supports Debian 12 and 13. Use another image for it."
            )
        if abs(answer["skew"]) > tolerance:
            ahead = "ahead of" if answer["skew"] > 0 else "behind"
            problems.append(
                f"The clock of {host} is {abs(answer['skew']):.0f} s {ahead} the controller's, more than "
                f"site_clock_tolerance ({tolerance:g} s). Set the clock, then run again."
            )
    return problems


def last_words(message: str) -> str:
    """What SSH said, without what Ansible says around it."""
    words = message.strip().splitlines() or ["no answer"]
    return re.sub(r"^(Task failed: |Failed to connect to the host via ssh: )+", "", words[-1]) or "no answer"


class Refusal(AnsibleActionFail):
    """Every problem at once. The error itself is one line: Ansible shows it, and below it the result's message."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("Preflight refuses, and nothing was changed.")
        self.problems = problems

    @property
    def result_contribution(self) -> Mapping[str, object]:
        lines = ["Preflight refuses, and nothing was changed:", *(f"- {problem}" for problem in self.problems)]
        return {**super().result_contribution, "msg": "\n".join(lines)}


def refuse(problems: list[str]) -> None:
    if problems:
        raise Refusal(problems)


class ActionModule(ActionBase):
    """The three parts of preflight; see the module's docstring."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        part = self._task.args.get("part")
        parts = {"inventory": self._inventory, "host": self._host, "verdict": self._verdict}
        if part not in parts:
            raise AnsibleActionFail(f"preflight: part must be one of {', '.join(parts)}; found {part!r}.")
        result.update(parts[part](task_vars or {}))
        return result

    def _inventory(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        if problem := core_problem():
            refuse([problem])
        groups = task_vars["groups"]
        needed = self._task.args.get("groups") or {}
        if not [host for host in groups.get("all") or [] if host != "localhost"]:
            refuse(["No inventory was read, or it has no host. Say which: -i inventories/<env>."])
        problems = misspelt_problems(groups)
        problems += group_problems(
            groups,
            needed,
            self._task.args.get("kit_groups") or sorted({*needed, "backup", *GROUP_STAGES}),
        )
        problems += single_problems(groups)
        if stage := self._task.args.get("stage"):
            problems += stage_problems(groups, GROUP_STAGES, int(stage))
            problems += fleet_problems(groups, int(stage))
            problems += replica_stage_problems(groups, int(stage))
        hosts = [host for host in groups.get("site") or [] if host != "localhost"]
        hostvars, raw = self._variables(task_vars, hosts)
        known = known_variables()
        own = self._value(hostvars, hosts[0], "site_own_variables")[0] if hosts else None
        own = {name for name in own if isinstance(name, str)} if isinstance(own, list) else set()
        problems += unknown_problems({host: list(raw[host]) for host in hosts}, known | own, prefixes())
        version = str(task_vars.get("version") or "")
        problems += batches_problems(task_vars.get("deploy_batches"))
        problems += self._settings(hostvars, raw, groups, version)
        problems += self._role_variables(raw)
        if not problems and hosts:
            problems += line_break_problems(self._passwords(hostvars, raw))
        # An operation changes neither; it may be what mends them.
        if not problems and stage:
            problems += self._poolers(hostvars, raw, groups)
            problems += self._repository(hostvars, raw, groups)
            problems += self._synchronous(hostvars, groups)
        if not problems and groups.get("worker"):
            problems += self._workers(hostvars, groups)
        addresses = {host: self._value(hostvars, host, "host_address")[0] for host in hosts}
        problems += address_problems({host: str(address) for host, address in addresses.items() if address})
        refuse(problems)
        return {"changed": False, "hosts": len(hosts)}

    def _variables(self, task_vars: dict[str, Any], hosts: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Each host's variables, templated when they are read, and as they are written.

        Ansible gathers a host's variables anew each time that hostvars is asked for the host; here that is once.
        """
        hostvars = task_vars["hostvars"]
        try:
            return {host: hostvars[host] for host in hosts}, {host: hostvars.raw_get(host) for host in hosts}
        except AnsibleError as error:
            words = str(error).splitlines()[0]
        sources = [Path(str(source)) for source in task_vars.get("ansible_inventory_sources") or []]
        folders = [source if source.is_dir() else source.parent for source in sources]
        raise Refusal(values.broken_files([*folders, KIT]) or [f"The variables of the hosts cannot be read: {words}"])

    def _settings(
        self, hostvars: Mapping[str, Any], raw: Mapping[str, Any], groups: Mapping[str, list[str]], version: str
    ) -> list[str]:
        problems: list[str] = []
        hosts = list(raw)
        where: dict[str, list[str]] = defaultdict(list)  # the same wrong value on several hosts is one problem
        unset: set[str] = set()  # what is built from a setting that is missing is not a second problem
        usual = defaults()
        for name, spec in settings().items():
            missing = [host for host in hosts if name not in raw[host]]
            if missing and spec.get("required"):
                unset.add(name)
                problems.append(
                    f"{name} is not set for {listed(missing)}. Set it in group_vars/site.yml: {spec['description']}"
                )
            judged: dict[str, list[str]] = {}
            for host in hosts:
                # A default is right, and reading a generated secret would make it: a refused run leaves nothing behind.
                if host in missing or (name in usual and raw[host][name] == usual[name]):
                    continue
                value, error = raw[host][name], None
                if not is_plain(value):
                    value, error = self._value(hostvars, host, name)
                if error and (cause := UNDEFINED.search(error)):
                    if cause[1] not in unset:
                        where[f"{name} uses {cause[1]}, which is not set on @. Set it, or correct {name}."].append(host)
                elif error:
                    where[f"{name} cannot be read on @: {error}"].append(host)
                else:
                    key = repr(value)
                    if key not in judged:
                        judged[key] = [on_command_line(name, found) for found in values.problems(name, spec, value)]
                        judged[key] += (
                            [] if judged[key] else self._meaning(name, value, hostvars[host], groups, version)
                        )
                    for problem in judged[key]:
                        where[problem].append(host)
            unset |= {UNSET.match(problem)[1] for problem in where if UNSET.match(problem)}
        for problem, found in where.items():
            everywhere = f" (on {listed(found)})" if len(found) < len(hosts) else ""
            said = problem.replace("on @", f"on {placed(found, hosts)}", 1)
            problems.append(said if said != problem else problem + everywhere)
        if not problems and hosts:
            problems += self._tls_settings(hostvars, hosts[0])
            problems += edge_tls_problems(groups, self._value(hostvars, hosts[0], "site_tls")[0])
            problems += virtual_address_problems(groups, self._value(hostvars, hosts[0], "site_virtual_address")[0])
            problems += media_host_problems(self._value(hostvars, hosts[0], "site_media_host")[0], groups)
            primaries = {host: str(self._value(hostvars, host, "site_database_primary")[0] or "") for host in hosts}
            problems += primaries_problems(primaries, groups)
            problems += self._failover(hostvars, groups)
            seconds = (
                self._value(hostvars, hosts[0], f"site_{name}_seconds")[0]
                for name in ("read_own_writes", "replica_lag")
            )
            problems += read_own_writes_problems(*seconds)
            problems += self._shares(hostvars)
            urls = (self._value(hostvars, hosts[0], f"site_{kind}_url")[0] for kind in ("static", "media"))
            problems += values.url_problems(*urls)
        return problems

    def _failover(self, hostvars: Mapping[str, Any], groups: Mapping[str, list[str]]) -> list[str]:
        first = next(iter(groups.get("database") or hostvars))
        if self._value(hostvars, first, "site_database_failover")[0] != "automatic":
            return []
        pooler = bool(self._value(hostvars, first, "site_pooler")[0])
        addresses = {host: str(self._value(hostvars, host, "host_address")[0]) for host in hostvars}
        own = self._value(hostvars, first, "postgres_settings")[0] or {}
        synchronous = int(self._value(hostvars, first, "postgres_synchronous_replicas")[0] or 0)
        return failover_problems(groups, pooler, addresses, own, synchronous)

    def _synchronous(self, hostvars: Mapping[str, Any], groups: Mapping[str, list[str]]) -> list[str]:
        databases = groups.get("database") or []
        if not databases or self._value(hostvars, databases[0], "site_database_failover")[0] == "automatic":
            return []
        return synchronous_problems(
            int(self._value(hostvars, databases[0], "postgres_synchronous_replicas")[0] or 0), databases
        )

    def _poolers(
        self, hostvars: Mapping[str, Any], raw: Mapping[str, Any], groups: Mapping[str, list[str]]
    ) -> list[str]:
        """What the poolers of all hosts may open, against what the database takes."""
        coded = dict.fromkeys([*(groups.get("web") or []), *(groups.get("worker") or [])])
        hosts = [host for host in coded if self._value(hostvars, host, "pooler_here")[0]]
        databases = groups.get("database") or []
        if not hosts or not databases:
            return []
        name = "pgbouncer_server_connections"
        read = {host: self._value(hostvars, host, name) for host in hosts}
        if unread := {host: error for host, (_, error) in read.items() if error}:
            return [f"{name} cannot be read on {listed(unread)}: {next(iter(unread.values()))}. Write a whole number."]
        opened = {host: int(value) for host, (value, _) in read.items()}
        own = [host for host in hosts if raw[host][name] != defaults()[name]]
        usually = read_yaml(KIT / "roles/postgres/defaults/main.yml")["postgres_max_connections"]
        takes = {host: int(self._value(hostvars, host, "postgres_max_connections")[0] or usually) for host in databases}
        reserve = int(self._value(hostvars, hosts[0], "pooler_connections_reserve")[0])
        pools = 2 if self._value(hostvars, hosts[0], "replicated")[0] else 1  # one that writes, one that reads
        return pooler_problems(opened, own, takes, reserve, needed=pools * LEAST_POOL)

    def _repository(
        self, hostvars: Mapping[str, Any], raw: Mapping[str, Any], groups: Mapping[str, list[str]]
    ) -> list[str]:
        databases = groups.get("database") or []
        keeper = str(self._value(hostvars, databases[0], "backup_host")[0]) if databases else ""
        if keeper not in databases:
            return []
        name = "pgbackrest_same_machine"
        # The wiring says it by itself, so that a site that is one machine needs nothing.
        said = raw[keeper][name] != defaults()[name] and bool(self._value(hostvars, keeper, name)[0])
        store = bool(self._value(hostvars, keeper, "site_backup_s3")[0])
        return repository_problems(groups, keeper, said, store)

    def _meaning(
        self, name: str, value: Any, host: Mapping[str, Any], groups: Mapping[str, list[str]], version: str
    ) -> list[str]:
        """What is wrong with a value of the right shape. Where a role judges it as well, the role's own words are used."""

        def get(other: str) -> Any:
            return self._value({"": host}, "", other)[0]

        def role(judge: str, theirs: str, *arguments: Any) -> list[str]:
            """What the function of a role's filters says about its own variable, under the setting's name."""
            file, function = judge.split(":")
            return [
                sentence.replace(theirs, name) for sentence in getattr(load(KIT / "roles" / file), function)(*arguments)
            ]

        match name:
            case "site_hostnames":
                return list(values.host_name_problems(value, get("site_tls"), len(groups.get("web") or []) < 2))
            case "site_source":
                look = bool(self._task.args.get("source", True)) and not ARTIFACT.fullmatch(version)
                return list(values.source_problems(value, version or str(get("site_version") or ""), look))
            case "site_administrators":
                passwords = bool(get("base_ssh_passwords"))
                own = list(values.administrator_problems(value, passwords))
                return own or role(BASE, "base_administrators", value, passwords)
            case "site_firewall_allow":
                return role(FIREWALL, "firewall_allow", value, 22, [], [], 60)
            case "site_ssh_from":
                return role(FIREWALL, "firewall_ssh_from", [], 22, value, [], 60)
            case "site_rate_limits":
                health, ready = (str(get(f"site_{kind}_path") or "/healthz") for kind in ("health", "ready"))
                found = role(LIMITS, "haproxy_rate_limits", {"rate_limits": value, "health_path": ready})
                # The edge asks the one, whoever watches the site from outside the other.
                return found or list(values.health_limit_problems(value, health))
            case "site_gates":
                odd = load(KIT / "roles/django/filter_plugins/django.py").django_odd_commands({}, value, [])
                return [
                    f"{problem.replace('django_gates', name)}, which is no command. Write it as text: check --deploy."
                    for problem in odd
                ]
            case "site_backup_s3":
                return store_problems(value, S3_NEEDS)
            case "site_environment" | "site_secret_environment":
                return list(values.environment_problems(name, value))
            case "site_workers":
                return list(values.worker_problems(value))
        return []

    def _role_variables(self, raw: Mapping[str, Any]) -> list[str]:
        """The sentences for roles' variables that a person has set; what needs a template is left to the role."""
        described, usual = role_variables(), defaults()
        where: dict[str, list[str]] = defaultdict(list)
        for host, variables in raw.items():
            for name in described.keys() & variables.keys():
                value = variables[name]
                if (name in usual and value == usual[name]) or not is_plain(value):
                    continue
                spec = {**described[name], "required": False}
                if name in LEAST:
                    spec["min"] = LEAST[name]
                for problem in values.problems(name, spec, value, strict=False):
                    where[on_command_line(name, problem)].append(host)
        return sorted(problem.replace("on @", f"on {placed(found, raw)}", 1) for problem, found in where.items())

    def _shares(self, hostvars: Mapping[str, Any]) -> list[str]:
        problems: dict[str, list[str]] = defaultdict(list)
        for host in hostvars:
            shares = self._value(hostvars, host, "site_memory_shares")[0] or {}
            claims = self._value(hostvars, host, "memory_claims")[0] if shares else {}
            for problem in values.share_problems(shares, claims or {}):
                problems[problem].append(host)
            theirs, error = self._value(hostvars, host, "memory_shares")
            sums = f"The memory shares of @ cannot be read: {error}" if error else memory_problem("@", theirs)
            if sums:
                problems[sums].append(host)
        return [re.sub(r"\b(on|of) @", rf"\1 {listed(found)}", problem, count=1) for problem, found in problems.items()]

    def _tls_settings(self, hostvars: Mapping[str, Any], host: str) -> list[str]:
        choice = self._value(hostvars, host, "site_tls")[0]
        wants = {"files": ("site_tls_certificate", "site_tls_key"), "letsencrypt": ("site_contact_email",)}
        found = {name: self._value(hostvars, host, name)[0] for name in wants.get(choice, ())}
        problems = [
            f"site_tls is {choice}, which needs {name}; it is empty. Set it in group_vars/site.yml."
            for name, value in found.items()
            if not value
        ]
        if choice == "files":
            problems += [
                f"{name} is {value}, which is no file on the controller. Correct the path."
                for name, value in found.items()
                if value and not Path(value).expanduser().is_file()
            ]
        return problems

    def _passwords(self, hostvars: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """Secrets that a person has set, by name and by host. The kit's own are left alone: reading one would make it."""
        usual = defaults()
        secret = [name for name in settings() if name.endswith(("_password", "_passphrase", "_token", "_url", "_key"))]
        secret += [name for name in role_variables() if name.endswith(("_password", "_passphrase"))]
        chosen = {
            name: [host for host in raw if raw[host].get(name, usual.get(name)) != usual.get(name)] for name in secret
        }
        return {
            name: {host: str(self._value(hostvars, host, name)[0] or "") for host in own}
            for name, own in chosen.items()
        }

    def _workers(self, hostvars: Mapping[str, Any], groups: Mapping[str, list[str]]) -> list[str]:
        hosts = list(groups["worker"])
        first = hosts[0]
        url = str(self._value(hostvars, first, "site_broker_url")[0] or "")
        problems = broker_problems(
            url, list(groups.get("cache") or []), self._value(hostvars, first, "site_broker_settings")[0] or {}
        )
        workers = {
            f"{worker.get('name', '')} on {host}": worker
            for host in hosts
            for worker in self._value(hostvars, host, "site_workers")[0]
        }
        consumed = {name: worker.get("queues") or ["celery"] for name, worker in workers.items()}
        queues = self._value(hostvars, first, "site_queues")[0]
        own = self._value(hostvars, first, "site_settings")[0] or {}
        problems += queue_problems(queues, consumed, routed_queues(own))
        set_limit = own.get("CELERY_TASK_TIME_LIMIT")
        held = isinstance(set_limit, int | float) and set_limit > 0
        limit = int(set_limit if held else self._value(hostvars, first, "site_task_time_limit")[0])
        limits = {name: int(worker.get("time_limit") or limit) for name, worker in workers.items()}
        problems += limit_problems(
            limits,
            int(self._value(hostvars, first, "site_visibility_timeout")[0]),
            redis=not url.startswith("amqp"),
        )
        beats = [host for host in hosts if self._value(hostvars, host, "celery_beat")[0]]
        chosen = str(self._value(hostvars, first, "site_beat_host")[0])
        return problems + beat_problems(beats, chosen, hosts)

    @staticmethod
    def _value(hostvars: Mapping[str, Any], host: str, name: str) -> tuple[Any, str | None]:
        """A variable of a host, templated, and the error when it cannot be."""
        try:
            return hostvars[host][name], None
        except Exception as error:
            return None, str(error).splitlines()[0]

    def _host(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        before = time.time()
        facts = self._execute_module(
            "ansible.legacy.setup", {"gather_subset": FACTS}, task_vars=task_vars, wrap_async=False
        )
        middle = (before + time.time()) / 2
        if facts.get("failed"):
            words = str(facts.get("msg") or facts.get("module_stderr") or "no words").splitlines()[0]
            return {"changed": False, "answer": {"failed": words}}
        found = facts["ansible_facts"]
        answer = {
            "distribution": found["ansible_distribution"],
            "version": found["ansible_distribution_major_version"],
            "skew": round(float(found["ansible_date_time"]["epoch"]) - middle, 1),
        }
        return {"changed": False, "answer": answer, "ansible_facts": found}

    def _verdict(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        hostvars = task_vars["hostvars"]
        answers, problems = {}, []
        # With --limit only some hosts were asked.
        hosts = [host for host in task_vars["groups"].get("site") or [] if "_preflight_host" in hostvars[host]]
        if not hosts:
            raise AnsibleActionFail("Preflight asked no host: the inventory or --limit leaves none of the group site.")
        for host in hosts:
            answer = hostvars[host]["_preflight_host"]
            if answer.get("unreachable"):
                answers[host] = {"unreachable": last_words(str(answer.get("msg", "")))}
            else:
                answers[host] = dict(answer.get("answer") or {"failed": "it was not asked"})
        tolerance = float(self._value(hostvars, hosts[0], "site_clock_tolerance")[0] or 30)
        problems += host_problems(answers, tolerance)
        problems += self._versions(hostvars, task_vars["groups"])
        refuse(problems)
        return {"changed": False}

    def _versions(self, hostvars: Mapping[str, Any], groups: Mapping[str, list[str]]) -> list[str]:
        """PostgreSQL's, of the hosts that were asked and of those that are told theirs."""
        found = {}
        for host in groups.get("database") or []:
            asked = self._value(hostvars, host, "postgres_version")[0]
            version = str(asked or self._value(hostvars, host, "distribution_postgres")[0] or "")
            if version.isdigit():  # the role refuses what is no number
                found[host] = version
        return version_problems(found, bool(found) and bool(self._value(hostvars, next(iter(found)), "site_pooler")[0]))
