"""Refuse an inventory that does not fit, before anything changes, with one sentence per problem.

`preflight: {part: inventory, groups: {web: ..., database: ...}, stage: 1}` looks at the inventory on the controller alone;
`preflight: {part: host}` asks one host for its facts and clock in one remote call and keeps the answer;
`preflight: {part: verdict}` reads all answers and names every problem at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as core_version

KIT = Path(__file__).resolve().parents[2]
ANSIBLE_CORE = ((2, 19), (2, 20))  # from, and the first that has not been tried
SINGLE = ("cache",)  # groups of which the site uses one host
GROUP_STAGES = {
    "cache": 2,
    "worker": 3,
    "edge": 4,
}  # the stage that a group's layer comes with; those of stage 1 are always run
KIT_GROUPS = {"web", "database", *GROUP_STAGES}
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
TYPES = {"str": str, "list": list, "dict": Mapping, "int": int, "float": (int, float), "bool": bool}
TYPE_WORDS = {"str": "text", "list": "a list", "dict": "a mapping", "int": "a whole number", "float": "a number",
              "bool": "true or false"}  # fmt: skip
UNDEFINED = re.compile(r"'(\w+)' is undefined")
UNSET = re.compile(r"\w+ uses (\w+), which is not set")
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


def known_variables(kit: Path = KIT) -> set[str]:
    """Every variable that a role, a setting or the wiring knows."""
    known = set(settings(kit))
    for specs in kit.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(specs.read_text())["argument_specs"].values():
            known |= set(entry.get("options") or {})
    for wiring in (kit / "group_vars/all").glob("*.yml"):
        known |= set(yaml.safe_load(wiring.read_text()) or {})
    return known


def settings(kit: Path = KIT) -> dict[str, dict[str, Any]]:
    """The settings of a site as plugins/settings.yml describes them."""
    return yaml.safe_load((kit / "plugins/settings.yml").read_text())


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


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a sentence: "a, b and 3 more"."""
    names = sorted(set(names))
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return ", ".join(names)


def group_problems(groups: Mapping[str, list[str]], needed: Mapping[str, str], kit_groups: Iterable[str]) -> list[str]:
    problems = [
        f"The group {group} has no host, and this stage needs one: {reason}. Add a host to {group} in the inventory."
        for group, reason in needed.items()
        if not groups.get(group)
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
    problems = [
        f"The worker {worker} consumes {listed(set(names) - queues)}, and site_queues has {known}. "
        "Correct the queues of the worker in site_workers, or add the queue to site_queues."
        for worker, names in sorted(consumed.items())
        if set(names) - queues
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


def line_break_problems(passwords: Mapping[str, str]) -> list[str]:
    """The sentence for passwords that no line of a configuration can hold; names only."""
    broken = sorted(name for name, value in passwords.items() if re.search(r"[\r\n\0]", value))
    if not broken:
        return []
    return [
        f"{listed(broken)} has a line break in it, which no configuration file can hold. Write it on one line (in YAML: "
        "quoted, or |- in place of |)."
    ]


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


def setting_problem(name: str, spec: Mapping[str, Any], value: Any, where: str) -> str | None:
    """The sentence for one setting's value, or None when it is right."""
    kind = spec["type"]
    wrong_bool = isinstance(value, bool) and kind in ("int", "float")
    if not isinstance(value, TYPES[kind]) or wrong_bool:
        return f"{name} must be {TYPE_WORDS[kind]}; found {value!r} on {where}. Correct it in group_vars/site.yml."
    if spec.get("required") and not value:
        return f"{name} is empty on {where}. Set it in group_vars/site.yml: {spec['description']}"
    if spec.get("choices") and value not in spec["choices"]:
        return f"{name} must be one of {', '.join(spec['choices'])}; found {value!r} on {where}."
    if spec.get("pattern") and not re.fullmatch(spec["pattern"], value):
        return f"{name} must match {spec['pattern']}; found {value!r} on {where}. {spec['description']}"
    return None


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


def refuse(problems: list[str]) -> None:
    if problems:
        head = (
            "Preflight refuses, and nothing was changed:"
            if len(problems) > 1
            else "Preflight refuses, nothing was changed."
        )
        raise AnsibleActionFail("\n".join([head, *(f"- {problem}" for problem in problems)]))


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
        groups, hostvars = task_vars["groups"], task_vars["hostvars"]
        needed = self._task.args.get("groups") or {}
        if not [host for host in groups.get("all") or [] if host != "localhost"]:
            refuse(["No inventory was read, or it has no host. Say which: -i inventories/<env>."])
        problems = misspelt_problems(groups)
        problems += group_problems(
            groups, needed, self._task.args.get("kit_groups") or sorted({*needed, *GROUP_STAGES})
        )
        problems += single_problems(groups)
        if stage := self._task.args.get("stage"):
            problems += stage_problems(groups, GROUP_STAGES, int(stage))
            problems += fleet_problems(groups, int(stage))
        hosts = [host for host in groups.get("site") or [] if host != "localhost"]
        known = known_variables()
        own = set(self._value(hostvars, hosts[0], "site_own_variables")[0] or []) if hosts else set()
        problems += unknown_problems({host: list(hostvars[host]) for host in hosts}, known | own, prefixes())
        problems += self._settings(hostvars, hosts, groups)
        if not problems and hosts:
            problems += line_break_problems(self._passwords(hostvars, hosts[0]))
        if not problems and groups.get("worker"):
            problems += self._workers(hostvars, groups)
        addresses = {host: self._value(hostvars, host, "host_address")[0] for host in hosts}
        problems += address_problems({host: str(address) for host, address in addresses.items() if address})
        refuse(problems)
        return {"changed": False, "hosts": len(hosts)}

    def _settings(self, hostvars: Mapping[str, Any], hosts: list[str], groups: Mapping[str, list[str]]) -> list[str]:
        problems: list[str] = []
        where: dict[str, list[str]] = defaultdict(list)  # the same wrong value on several hosts is one problem
        unset: set[str] = set()  # what is built from a setting that is missing is not a second problem
        for name, spec in settings().items():
            # Reading a generated secret would make it, and a refused run is to leave nothing behind.
            if name.startswith("host_") or spec.get("generated"):
                continue
            missing = [host for host in hosts if name not in hostvars[host]]
            if missing and spec.get("required"):
                unset.add(name)
                problems.append(
                    f"{name} is not set for {listed(missing)}. Set it in group_vars/site.yml: {spec['description']}"
                )
            for host in hosts:
                if host in missing:
                    continue
                value, error = self._value(hostvars, host, name)
                if error and (cause := UNDEFINED.search(error)):
                    if cause[1] not in unset:
                        where[f"{name} uses {cause[1]}, which is not set on @. Set it, or correct {name}."].append(host)
                elif error:
                    where[f"{name} cannot be read on @: {error}"].append(host)
                elif problem := setting_problem(name, spec, value, "@"):
                    where[problem].append(host)
            unset |= {UNSET.match(problem)[1] for problem in where if UNSET.match(problem)}
        problems += [problem.replace("on @", f"on {listed(found)}", 1) for problem, found in where.items()]
        if not problems and hosts:
            problems += self._tls_settings(hostvars, hosts[0])
            problems += edge_tls_problems(groups, self._value(hostvars, hosts[0], "site_tls")[0])
            problems += virtual_address_problems(groups, self._value(hostvars, hosts[0], "site_virtual_address")[0])
            problems += media_host_problems(self._value(hostvars, hosts[0], "site_media_host")[0], groups)
        return problems

    def _tls_settings(self, hostvars: Mapping[str, Any], host: str) -> list[str]:
        choice = self._value(hostvars, host, "site_tls")[0]
        wants = {"files": ("site_tls_certificate", "site_tls_key"), "letsencrypt": ("site_contact_email",)}
        return [
            f"site_tls is {choice}, which needs {name}; it is empty. Set it in group_vars/site.yml."
            for name in wants.get(choice, ())
            if not self._value(hostvars, host, name)[0]
        ]

    def _passwords(self, hostvars: Mapping[str, Any], host: str) -> dict[str, str]:
        """Secrets that a person has set. The kit's own are left alone: reading one would make it."""
        defaults = yaml.safe_load((KIT / "group_vars/all/site.yml").read_text())
        raw = hostvars.raw_get(host)
        secret = [name for name in settings() if name.endswith(("_password", "_url", "_key")) and name in raw]
        chosen = [name for name in secret if raw[name] != defaults.get(name)]
        return {name: str(self._value(hostvars, host, name)[0] or "") for name in chosen}

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
        limit = int(self._value(hostvars, first, "site_task_time_limit")[0])
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
        for host, answer in answers.items():
            if "distribution" not in answer:
                continue
            shares, error = self._value(hostvars, host, "memory_shares")
            problem = f"The memory shares of {host} cannot be read: {error}" if error else memory_problem(host, shares)
            if problem:
                problems.append(problem)
        refuse(problems)
        return {"changed": False}
