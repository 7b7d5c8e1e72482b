"""./ladder traffic, rehearse and drill: what is done to the site while people use it, and what they noticed of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab import ansible, commands, database_drills, hosts, inventory, patroni_drills, picture
from lab.machine import MachineError, tail
from lab.model import Lab
from lab.report import console, duration, step, table
from lab.traffic import PRODUCTS, TIMEOUT_SECONDS, Count, Door, Report, Traffic, Visit, longest_gap, report

DEFAULT_SECONDS = 30
DEFAULT_RATE = 10.0
SETTLE_SECONDS = 5  # of traffic before and after what is rehearsed
REBOOT_SECONDS = 120
IN_FLIGHT_SECONDS = 0.5  # how long the slowest ordinary request of the lab is under way
# Until the tasks of a worker that died have run: the lab's visibility timeout, and the 100 s in which Celery looks for
# such tasks once.
CONFIRM_SECONDS = 180
LONG_TASKS, LONG_TASK_SECONDS = 6, 6
QUEUED_TASKS = 50  # that lie in the queue when the broker is killed
PLAYS = (
    "Base",
    "Database",
    "Replicas",
    "Pooler",
    "Hold",
    "Fence",
    "Promote",
    "Join",
    "Move",
    "Replicas by Patroni",
    "Replicas given back",
    "The primary given back",
    "Go on",
    "Replicas of the new primary",
    "Broker",
    "Release",
    "Workers and beat",
    "Roll back",
    "Web server",
    "Edge",
)  # what is marked in a picture


def stage_hosts(lab: Lab) -> dict[str, list[str]]:
    """The running lab's hosts with their groups; raises MachineError when there is none that serves a site."""
    state = lab.load()
    if not state.stage:
        raise MachineError(f"The lab {lab.name} serves no site. ./ladder up makes it.")
    return inventory.read_hosts(inventory.stage_file(lab.root, state.stage))


def in_group(lab: Lab, group: str) -> list[str]:
    return [host for host, groups in stage_hosts(lab).items() if group in groups]


def front_door(lab: Lab) -> Door:
    """Where people reach the site now: the first edge host, or the first web host where there is none."""
    first = commands.front_door(stage_hosts(lab))
    authority = commands.authority(lab)
    if authority is None:
        raise MachineError(f"The lab {lab.name} has no certificate authority yet. Run ./ladder up.")
    hostname = commands.site_settings(lab)["site_hostnames"][0]
    return Door(lab.load().addresses[first], hostname, authority)


def manage(lab: Lab, *words: str, given: str = "") -> str:
    """Run a management command of the site on its first web host; gives what it printed."""
    name = commands.site_settings(lab)["site_name"]
    command = [*lab.ssh_command(in_group(lab, "web")[0]), "--", "sudo", f"{name}-manage", *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise MachineError(f"{name}-manage {' '.join(words)} failed:\n{tail(done.stdout + done.stderr, 15)}")
    return done.stdout


def count_orders(lab: Lab, pieces: int | None) -> Callable[[Path], Count]:
    """Asks the site's own database for a ledger's orders, and waits for confirmations that are still to be made.

    `pieces` is how many were in stock and sold before.
    """

    def count(ledger: Path) -> Count:
        return read_count(
            manage(lab, "check_ledger", "--report", "--wait", str(CONFIRM_SECONDS), given=ledger.read_text()), pieces
        )

    return count


def read_count(said: str, pieces: int | None) -> Count:
    """What check_ledger said. A release that was made before it counted pieces and runs says nothing of them."""
    found = re.search(r"(\d+) missing, (\d+) doubled, (\d+) unconfirmed, (\d+) confirmed twice", said)
    if not found:
        raise MachineError(f"check_ledger said nothing that could be read:\n{tail(said, 15)}")
    again = re.search(r"sent again (\d+), ran again (\d+)", said)
    after = read_pieces(said)
    return Count(
        *map(int, found.groups()),
        astray=0 if pieces is None or after is None else abs(after - pieces),
        sent_again=int(again[1]) if again else None,
        ran_again=int(again[2]) if again else None,
    )


def read_pieces(said: str) -> int | None:
    found = re.search(r"(\d+) pieces in stock and sold", said)
    return int(found[1]) if found else None


def ready_traffic(lab: Lab, rate: float) -> Traffic:
    """A load for the running lab, not started: products are there, and a session that may upload."""
    manage(lab, "seed_shop", "--products", str(PRODUCTS))
    session = manage(lab, "traffic_session").split()[-1]
    made = Traffic(front_door(lab), rate, lab.folder / "traffic/ledger", session)
    made.pieces = read_pieces(manage(lab, "check_ledger", "--report"))
    return made


def show(lab: Lab, traffic: Traffic, name: str, climbs: Sequence[Climb] = ()) -> Report:
    """Count what is in the database, write report and picture, print both's gist."""
    with step("Counting orders and confirmations in the database"):
        summed = report(traffic, count_orders(lab, traffic.pieces))
    summed.climbs = [asdict(climb) for climb in climbs]
    folder = lab.folder / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(asdict(summed), indent=2) + "\n")
    lost, doubled = summed.lost + summed.unconfirmed, summed.doubled + summed.confirmed_twice + summed.astray
    title = f"{name}: {summed.requests} visits, {summed.failed} failed, {lost} lost, {doubled} doubled"
    (folder / f"{name}.svg").write_text(picture.svg(traffic.visits, traffic.marks, traffic.seconds, title))
    latency = ", ".join(f"{key} {value:g}" for key, value in summed.latency_ms.items())
    rows = [
        ["visits", f"{summed.requests} in {duration(summed.seconds)} ({summed.rate:g} a second)"],
        ["failed", str(summed.failed)],
        *[[f"  {kind}", seconds_of(seconds)] for kind, seconds in summed.failures.items()],
        ["latency (ms)", latency],
        ["longest time without a success", f"{summed.longest_gap:g} s"],
        ["orders acknowledged", str(summed.orders)],
        ["orders repeated under their key", str(summed.repeated)],
        ["orders lost / doubled", f"{summed.lost} / {summed.doubled}"],
        ["pieces astray", "not counted" if traffic.pieces is None else str(summed.astray)],
        ["confirmations lost / doubled", f"{summed.unconfirmed} / {summed.confirmed_twice}"],
    ]
    if summed.sent_again is not None:
        rows.append(["confirmations sent again / run again", f"{summed.sent_again} / {summed.ran_again}"])
    console.print(table(["traffic", name], rows))
    console.print(f"Report and picture: {folder / name}.json, .svg", soft_wrap=True)
    return summed


def seconds_of(seconds: dict[str, int], most: int = 8) -> str:
    """When failures happened: "second 3: 2, second 4: 10"."""
    listed = [f"second {second}: {count}" for second, count in sorted(seconds.items(), key=lambda item: int(item[0]))]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def traffic(lab: Lab, seconds: int, rate: float) -> int:
    """Load for some seconds; the exit code is 1 when an acknowledged order is missing or doubled."""
    made = ready_traffic(lab, rate)
    with step(f"Traffic for {seconds} s"), made:
        time.sleep(seconds)
    return 0 if show(lab, made, "traffic").kept else 1


def play(
    lab: Lab, traffic: Traffic, stage: int, arguments: list[str], log: Path, source: Path | None = None
) -> tuple[int, str]:
    """Run ansible-playbook under traffic, with the stage's inventory or another; each of its plays is marked."""
    command = ansible.playbook_command(lab, source or inventory.stage_file(lab.root, stage), arguments)
    seen: set[str] = set()

    def update(heading: str) -> None:
        if heading in PLAYS and heading not in seen:
            seen.add(heading)
            traffic.mark(heading)
        running(heading)

    with step(" ".join(arguments[:1])) as running:
        return ansible.run_logged(command, log, update)


@contextmanager
def settled(made: Traffic) -> Iterator[None]:
    """Traffic, with some seconds of nothing but traffic before and after."""
    with made:
        time.sleep(SETTLE_SECONDS)
        yield
        time.sleep(SETTLE_SECONDS)


@dataclass(frozen=True)
class Cost:
    """What visitors notice of a climb: visits that fail, and the longest time without one that ends well (seconds)."""

    failed: int = 0
    longest_gap: float = TIMEOUT_SECONDS  # longer, and a visit that waited in it has failed


# What each way may cost: nobody's visit. That holds for stage 4 too, where the names move: the first web host serves
# those who come to it until the edge is there, and the visitors of a rehearsal go there at once.
EXPECTED = {
    (1, 2): Cost(),
    (2, 3): Cost(),
    (3, 4): Cost(),
    (4, 5): Cost(),
    (5, 4): Cost(),
    (4, 3): Cost(),
    (3, 2): Cost(),
    (2, 1): Cost(),
}


@dataclass(frozen=True)
class Climb:
    """The way from one stage to the next, up or down; when it began, in seconds from the start; what it may cost."""

    start: int
    end: int
    began: float
    expected: Cost
    measured: Cost | None = None

    @property
    def broken(self) -> str:
        """The sentence for what it cost more than it may; empty when that is nothing."""
        if self.measured is None:
            return "it was not measured"
        problems = []
        if self.measured.failed > self.expected.failed:
            problems.append(f"{self.measured.failed} visits failed, {self.expected.failed} may")
        if self.measured.longest_gap > self.expected.longest_gap:
            problems.append(
                f"nobody was served for {self.measured.longest_gap:g} s, {self.expected.longest_gap:g} s may pass"
            )
        return ", ".join(problems)


def measured(climbs: Sequence[Climb], visits: Iterable[Visit], seconds: float) -> list[Climb]:
    """Each climb with what it cost: it lasts until the next one begins, and the first from the first visit on."""
    visits, found = list(visits), []
    for number, climb in enumerate(climbs):
        begin = climb.began if number else 0.0
        last = number + 1 == len(climbs)
        end = seconds if last else climbs[number + 1].began
        failed = sum(1 for visit in visits if visit.failure and begin <= visit.due and (last or visit.due < end))
        cost = Cost(failed, round(longest_gap(visits, end, begin), 2))
        found.append(replace(climb, measured=cost))
    return found


def rehearse(lab: Lab, start: int, end: int, rate: float, back: bool) -> int:
    """Grow the lab from one stage to another while people use it, and with `back` down again.

    Gives 1 when a way cost its visitors more than it may, or an order or its confirmation was lost or doubled; raises
    MachineError when a climb failed.
    """
    existing = inventory.stages(lab.root)
    for stage in (start, end):
        inventory.stage_file(lab.root, stage)
    if end <= start:
        raise MachineError(
            f"A rehearsal climbs: from {start} to {end} there is nothing to climb. Down again is --back: ./ladder rehearse "
            f"{min(start, end)} {max(start, end)} --back, say. Stages: {', '.join(map(str, existing))}."
        )
    state = lab.load()
    if state.stage > start:
        raise MachineError(
            f"The lab {lab.name} is at stage {state.stage} already. ./ladder down, then rehearse {start} {end}."
        )
    commands.up(lab, start, state.debian or None)
    made = ready_traffic(lab, rate)
    climbs: list[Climb] = []

    def begin(before: int, after: int) -> None:
        climbs.append(Climb(before, after, made.now, EXPECTED[before, after]))

    with settled(made):
        for stage in range(start + 1, end + 1):
            begin(stage - 1, stage)
            made.mark(f"stage {stage}")
            commands.up(lab, stage, None)
            made.door.address = front_door(lab).address
            made.mark(f"stage {stage} is there")
        for stage in range(end, start, -1) if back else ():
            time.sleep(SETTLE_SECONDS)
            begin(stage, stage - 1)
            made.mark(f"back to stage {stage - 1}")
            go_back(lab, made, stage)
            made.mark(f"stage {stage - 1} is there")
    climbs = measured(climbs, made.visits, made.seconds)
    return judge(show(lab, made, f"rehearse-{start}-{end}{'-back' if back else ''}", climbs), climbs)


def judge(summed: Report, climbs: Sequence[Climb]) -> int:
    """Say of each way whether it cost what it may; gives 1 when one cost more, or an order was not kept."""
    for climb in climbs:
        way = f"stage {climb.start} to {climb.end}"
        console.print(f"[red]broken[/red]  {way}: {climb.broken}" if climb.broken else f"[green]kept[/green]  {way}")
    if not summed.kept:
        console.print(f"[red]broken[/red]  {summed.broken}")
    return 0 if summed.kept and not any(climb.broken for climb in climbs) else 1


def go_back(lab: Lab, made: Traffic, stage: int) -> None:
    """From a stage to the one below, in the steps of the stage's page; the hosts that are left over are removed."""
    lower = inventory.stage_file(lab.root, stage - 1)
    before, after = stage_hosts(lab), inventory.read_hosts(lower)
    name = commands.site_settings(lab)["site_name"]

    def run(at: int, *words: str, source: Path | None = None) -> None:
        log = lab.logs / f"back-to-stage{stage - 1}.log"
        code, output = play(lab, made, at, list(words), log, source)
        if code:
            raise MachineError(f"{ansible.failure(output)}\n\nThe whole log: {log}")

    def stop(host: str, *units: str) -> None:
        if commands.ssh(lab, host, [f"sudo systemctl stop {' '.join(units)}"]):
            raise MachineError(f"{units[0]} of {host} could not be stopped.")

    leaving = [host for host, groups in before.items() if "worker" in groups and host not in after]
    if stage == 5:
        # The backups stay where they are in this run: the database's host, which has no part in it, knows no other place.
        [replica] = [host for host, groups in before.items() if "database" in groups and host not in after]
        with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
            source = inventory.without(lab.root, stage, replica, Path(folder))
            run(stage, "playbooks/stage5.yml", "--limit", "web,worker,localhost", source=source)
    if stage == 4:
        made.door.address = lab.load().addresses[commands.front_door(after)]
        for host in leaving:
            run(stage, "playbooks/stop-workers.yml", "-e", f"host={host}")
    if stage == 3:
        run(stage - 1, "playbooks/stage2.yml", "--limit", "web,localhost")
        for host in leaving:
            stop(host, f"celery-beat-{name}")
        manage(lab, "check_ledger", "--report", "--wait", str(CONFIRM_SECONDS), given=made.ledger.read_text())
        for host in leaving:
            stop(host, f"celery-health-{name}.timer", f"'celery-{name}@*'")
    run(stage - 1, f"playbooks/stage{stage - 1}.yml")
    state = lab.load()
    client = commands.connect()
    for host in set(before) - set(after):
        client.containers.get(f"{lab.name}-{host}").remove(force=True, v=True)
        state.addresses.pop(host, None)
    state.stage = stage - 1
    lab.save(state)
    lab.write_inventory(state.addresses)


@dataclass(frozen=True)
class Drill:
    """Something bad or ordinary that is done to the running site.

    `allowed` gives the sentence for a broken promise, from what visitors saw and from how many web hosts there are. It
    needs so many hosts in `group`. What `act` gives is how many commits the site has said that it lost.
    """

    what: str
    act: Callable[[Lab, Traffic], int | None]
    allowed: Callable[[Report, int], str]
    group: str = "web"
    hosts: int = 1
    asked: bool = False  # left out of `all`


def nothing_failed(summed: Report, _web_hosts: int) -> str:
    return f"{summed.failed} visits failed, none may" if summed.failed else ""


def at_most(seconds: float) -> Callable[[Report, int], str]:
    """Visits may fail while hosts are down, but the site answers again within so many seconds."""

    def judge(summed: Report, _web_hosts: int) -> str:
        gap = summed.longest_gap
        return f"nobody was served for {gap:g} s, at most {seconds:g} s are promised" if gap > seconds else ""

    return judge


def changed_shop(lab: Lab, folder: str, change: Callable[[Path], None] = lambda copy: None) -> str:
    """The arguments that deploy a changed copy of the example shop, with a stylesheet that no release had before."""
    copy = Path(folder) / "shop"
    shutil.copytree(lab.root / "examples/shop", copy)
    with (copy / "catalogue/static/catalogue/shop.css").open("a") as sheet:
        sheet.write(f"/* made at {time.time_ns()} */\n")
    change(copy)
    return json.dumps({"site_source": {"path": str(copy)}})


def deploy(lab: Lab, made: Traffic) -> None:
    """A new release with another stylesheet, then back to the one before."""
    stage = lab.load().stage
    with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
        source = changed_shop(lab, folder)
        for playbook, more in (("deploy", ["-e", source]), ("rollback", [])):
            made.mark(playbook)
            log = lab.logs / f"drill-{playbook}.log"
            code, output = play(lab, made, stage, [f"playbooks/{playbook}.yml", *more], log)
            if code:
                raise MachineError(f"{ansible.failure(output)}\n\nThe whole log: {log}")
    if len(made.stylesheets) < 2:
        raise MachineError("The visitors never got the new release's stylesheet, so static files were not tried.")


@dataclass(frozen=True)
class BadRelease:
    """A release that must never serve: what is appended to which of its files, and what the deploy fails with."""

    what: str
    file: str
    appended: str
    words: str


BAD_RELEASES = (
    BadRelease(
        "a release that cannot start",
        "shop/wsgi.py",
        "raise RuntimeError('this release cannot serve')",
        "this release cannot serve",
    ),
    BadRelease(
        "a release that starts and is not well",
        "shop/health.py",
        "def healthz(request):\n    return JsonResponse({'status': 'not well'}, status=500)",
        "/healthz answered 500 instead of 200",
    ),
)


def bad_deploy(lab: Lab, made: Traffic) -> None:
    """Releases that cannot serve: each deploy must fail and say why, and every host must keep the release it had."""
    before = live_releases(lab)
    for bad in BAD_RELEASES:
        made.mark(f"deploy of {bad.what}")
        deploy_bad(lab, made, bad)
        after = live_releases(lab)
        moved = [
            f"{host} has {after[host]} instead of {before[host]}" for host in before if after[host] != before[host]
        ]
        if moved:
            raise MachineError(f"The deploy of {bad.what} failed, and yet {', '.join(moved)}.")
        made.mark("refused")


def deploy_bad(lab: Lab, made: Traffic, bad: BadRelease) -> None:
    def spoil(copy: Path) -> None:
        with (copy / bad.file).open("a") as stream:
            stream.write(f"\n\n{bad.appended}\n")

    log = lab.logs / "drill-bad-deploy.log"
    with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
        source = changed_shop(lab, folder, spoil)
        code, output = play(lab, made, lab.load().stage, ["playbooks/deploy.yml", "-e", source], log)
    if code == 0:
        raise MachineError(f"The deploy of {bad.what} did not fail. The whole log: {log}")
    if bad.words not in " ".join(output.split()):
        raise MachineError(f"The deploy of {bad.what} failed without saying “{bad.words}”:\n{ansible.failure(output)}")


def live_releases(lab: Lab) -> dict[str, str]:
    """What each web host serves and each worker host runs, as the links say: the release, and Gunicorn's live socket."""
    name = commands.site_settings(lab)["site_name"]
    release, socket = f"readlink /srv/{name}/current", f"readlink /run/gunicorn-{name}/live.sock"
    found = {}
    for host, groups in stage_hosts(lab).items():
        if "web" in groups:
            found[host] = " by ".join(database_drills.on(lab, host, f"{release} && {socket}").split())
        elif "worker" in groups:
            found[host] = database_drills.on(lab, host, release).strip()
    return found


def kill_web(lab: Lab, made: Traffic) -> None:
    """kill -9 of Gunicorn's master on the first web host; where there are others, of the whole host after it."""
    web, name = in_group(lab, "web"), commands.site_settings(lab)["site_name"]
    # Not the keeper of the uploads: those would fail for as long as it is away, which is another promise.
    host = web[-1]
    made.mark(f"kill -9 Gunicorn on {host}")
    command_line = f"sudo systemctl kill --signal=KILL --kill-whom=main 'gunicorn-{name}@*.service'"
    if commands.ssh(lab, host, [command_line]):
        raise MachineError(f"Gunicorn on {host} could not be killed.")
    time.sleep(SETTLE_SECONDS)
    if len(web) > 1:
        kill_host(lab, made, host)


def kill_host(lab: Lab, made: Traffic, host: str) -> None:
    """A host loses power, and comes back after a while."""
    client = commands.connect()
    container = client.containers.get(f"{lab.name}-{host}")
    made.mark(f"{host} loses power")
    container.kill()
    time.sleep(2 * SETTLE_SECONDS)
    container.start()
    lab.close_connections()
    hosts.wait_until_up(client, lab, host, lab.load().addresses[host])
    made.mark(f"{host} is up")
    time.sleep(SETTLE_SECONDS)


def killed_web(summed: Report, web_hosts: int) -> str:
    """What a web server that dies may cost: alone some seconds, beside others the requests that it had begun."""
    if web_hosts == 1:
        return at_most(10)(summed, web_hosts)
    most = max(2, round(summed.rate * IN_FLIGHT_SECONDS))
    return f"{summed.failed} visits failed, more than the {most} that were under way" if summed.failed > most else ""


def remove_web(lab: Lab, made: Traffic) -> None:
    """The last web host leaves the inventory and comes back, each with one run of the stage."""
    stage = lab.load().stage
    leaver = in_group(lab, "web")[-1]
    with tempfile.TemporaryDirectory(prefix="stepladder-") as folder:
        smaller = inventory.without(lab.root, stage, leaver, Path(folder))
        for source, what in ((smaller, "leaves"), (inventory.stage_file(lab.root, stage), "comes back")):
            made.mark(f"{leaver} {what}")
            log = lab.logs / f"drill-remove-web-{what.split()[0]}.log"
            command = ansible.playbook_command(lab, source, [f"playbooks/stage{stage}.yml"])
            with step(f"{leaver} {what}: stage {stage}") as update:
                code, output = ansible.run_logged(command, log, update)
            if code:
                raise MachineError(f"{ansible.failure(output)}\n\nThe whole log: {log}")
            if what == "leaves":
                kill_host(lab, made, leaver)  # as a person turns the machine off, when it is no longer needed


def kill_cache(lab: Lab, made: Traffic) -> None:
    """The cache dies, comes back empty, hangs, and goes on."""
    for host in in_group(lab, "cache"):
        for words, what, seconds in (
            ("kill --signal=KILL redis-cache", "is killed", SETTLE_SECONDS),
            ("stop redis-cache", "is stopped", 2 * SETTLE_SECONDS),
            ("start redis-cache", "is back, empty", SETTLE_SECONDS),
            ("kill --signal=STOP redis-cache", "hangs", 2 * SETTLE_SECONDS),
            ("kill --signal=CONT redis-cache", "goes on", SETTLE_SECONDS),
        ):
            made.mark(f"{host} {what}")
            if commands.ssh(lab, host, [f"sudo systemctl {words}"]):
                raise MachineError(f"systemctl {words} failed on {host}.")
            time.sleep(seconds)


def kill_worker(lab: Lab, made: Traffic) -> None:
    """kill -9 of all of a worker host's processes while long tasks run; none may be lost."""
    host, name = needed(lab, "worker")[0], commands.site_settings(lab)["site_name"]
    word = manage(lab, "long_tasks", "--count", str(LONG_TASKS), "--seconds", str(LONG_TASK_SECONDS)).split()[-1]
    since = wait_for_tasks(lab, word, "begun", 1, LONG_TASK_SECONDS)
    time.sleep(LONG_TASK_SECONDS / 2)
    made.mark(f"kill -9 the workers of {host}")
    if commands.ssh(lab, host, [f"sudo systemctl kill --signal=KILL 'celery-{name}@*.service'"]):
        raise MachineError(f"The workers of {host} could not be killed.")
    killed = time.monotonic()
    wait_for_tasks(lab, word, "ended", LONG_TASKS, CONFIRM_SECONDS + LONG_TASKS * LONG_TASK_SECONDS)
    made.mark("all tasks are done")
    found = long_tasks(lab, word)
    console.print(
        f"Of {LONG_TASKS} tasks of {LONG_TASK_SECONDS} s, 0 were lost and {found['begun again']} began again; all were done "
        f"{time.monotonic() - killed:.0f} s after the kill."
    )
    if not found["begun again"]:
        raise MachineError(f"The kill hit no running task ({since:.0f} s after the first began), so nothing was tried.")


def long_tasks(lab: Lab, word: str) -> dict[str, int]:
    said = manage(lab, "long_tasks", "--of", word)
    return {what: int(number) for number, what in re.findall(r"(\d+) (tasks|begun again|begun|ended)", said)}


def wait_for_tasks(lab: Lab, word: str, what: str, number: int, seconds: float) -> float:
    """Wait until so many long tasks have begun or ended; gives the seconds that took. MachineError when they do not."""
    start = time.monotonic()
    while (found := long_tasks(lab, word))[what] < number:
        if time.monotonic() - start > seconds:
            raise MachineError(f"Of {number} tasks only {found[what]} have {what} after {seconds:.0f} s: {found}.")
        time.sleep(1)
    return time.monotonic() - start


@contextmanager
def stopped_workers(lab: Lab, made: Traffic) -> Iterator[None]:
    """No worker runs, and no health check minds, so what is sent lies in the queue; they start again in any case."""
    name = commands.site_settings(lab)["site_name"]
    health = f"celery-health-{name}"
    listing = f"systemctl list-units --plain --no-legend --full 'celery-{name}@*.service' | cut -d ' ' -f 1"
    with ExitStack() as again:
        made.mark("the workers stop")
        for host in needed(lab, "worker"):
            units = " ".join(database_drills.on(lab, host, listing).split())
            if not units:
                raise MachineError(f"No worker runs on {host}, so nothing was tried. ./ladder up starts them.")
            again.callback(database_drills.on, lab, host, f"systemctl start {units} {health}.timer")
            database_drills.on(lab, host, f"systemctl stop {health}.timer {health}.service {units}")
        yield
        made.mark("the workers start")


def kill_broker(lab: Lab, made: Traffic) -> None:
    """The broker is killed, stopped for a while, and hangs, while orders send tasks to it.

    An order's task is sent again when it is overdue, so it is not told by orders whether the broker keeps what it has
    taken. Tasks that nobody sends again tell: they lie in the queue when the broker is killed.
    """
    with stopped_workers(lab, made):
        # The command ends well when the broker has answered for each of them.
        word = manage(lab, "long_tasks", "--count", str(QUEUED_TASKS), "--seconds", "0").split()[-1]
        harm_broker(lab, made)
        begun = long_tasks(lab, word)["begun"]
        if begun:
            raise MachineError(f"{begun} tasks ran while the workers were stopped, so the queue was not tried.")
    wait_for_tasks(lab, word, "ended", QUEUED_TASKS, CONFIRM_SECONDS)
    made.mark("all tasks are done")
    console.print(f"Of {QUEUED_TASKS} tasks that lay in the broker when it was killed, 0 were lost.")


def harm_broker(lab: Lab, made: Traffic) -> None:
    host = needed(lab, "cache")[0]
    for words, what in (
        ("kill --signal=KILL redis-broker", "is killed"),
        ("stop redis-broker", "is stopped"),
        ("start redis-broker", "is back"),
        ("kill --signal=STOP redis-broker", "hangs"),
        ("kill --signal=CONT redis-broker", "goes on"),
    ):
        made.mark(f"the broker {what}")
        if commands.ssh(lab, host, [f"sudo systemctl {words}"]):
            raise MachineError(f"systemctl {words} failed on {host}.")
        time.sleep(2 * SETTLE_SECONDS)


def needed(lab: Lab, group: str, number: int = 1) -> list[str]:
    """The hosts of a group; raises MachineError when the lab's stage has fewer."""
    found = in_group(lab, group)
    if len(found) < number:
        raise MachineError(
            f"The lab {lab.name} has {len(found)} of {number} hosts in {group} that this needs at stage "
            f"{lab.load().stage}. ./ladder up a higher one."
        )
    return found


def reboot_all(lab: Lab, made: Traffic) -> None:
    """All hosts go down at once and come back."""
    client = commands.connect()
    made.mark("all hosts restart")
    for host in stage_hosts(lab):
        client.containers.get(f"{lab.name}-{host}").kill()
    for host in stage_hosts(lab):
        client.containers.get(f"{lab.name}-{host}").start()
    lab.close_connections()
    for host, address in lab.load().addresses.items():
        hosts.wait_until_up(client, lab, host, address)
    made.mark("all hosts are up")
    wait_for_success(made)


def wait_for_success(made: Traffic) -> None:
    """Wait until visits succeed again; raises MachineError after REBOOT_SECONDS."""
    since, deadline = made.now, time.monotonic() + REBOOT_SECONDS
    while time.monotonic() < deadline:
        if sum(1 for visit in list(made.visits) if visit.due > since and not visit.failure) >= 5:
            return
        time.sleep(0.5)
    raise MachineError(f"The site did not come back within {REBOOT_SECONDS} s.")


DRILLS = {
    "deploy": Drill("a deploy and a rollback; no visit fails, no page lacks its stylesheet", deploy, nothing_failed),
    "bad-deploy": Drill(
        "releases that cannot start or are not well are refused, every host keeps its own; no visit fails",
        bad_deploy,
        nothing_failed,
    ),
    "kill-web": Drill("Gunicorn is killed, and where there are others the whole host after it", kill_web, killed_web),
    "remove-web": Drill(
        "a web host leaves the inventory and comes back; no visit fails", remove_web, nothing_failed, "web", 2
    ),
    "kill-cache": Drill("the cache is killed, stopped, and hangs; no visit fails", kill_cache, nothing_failed, "cache"),
    "kill-worker": Drill(
        "all of a worker's processes are killed in mid-task; no visit fails, no task is lost",
        kill_worker,
        nothing_failed,
        "worker",
    ),
    "kill-broker": Drill(
        "the broker is killed, stopped, and hangs; no visit fails, no task that it took and no confirmation is lost",
        kill_broker,
        nothing_failed,
        "worker",
    ),
    "switchover": Drill(
        "a replica takes over and gives back; no visit fails", database_drills.switchover, nothing_failed, "database", 2
    ),
    "kill-primary": Drill(
        "the primary's host loses power, a replica takes over, the old one comes back and rejoins; what is lost is what was said",
        database_drills.kill_primary,
        at_most(30),
        "database",
        2,
    ),
    "kill-primary-synchronous": Drill(
        "kill-primary while each commit waits for the replica; nothing that was acknowledged is lost",
        database_drills.kill_primary_synchronous,
        at_most(30),
        "database",
        2,
        asked=True,
    ),
    "rejoin": Drill(
        "PostgreSQL is stopped on the primary, a replica takes over, the old one is kept down and rejoins; nothing is lost",
        database_drills.rejoin,
        at_most(30),
        "database",
        2,
    ),
    "split-brain": Drill(
        "the primary is cut off and comes back after a failover, still a primary: it takes no orders",
        database_drills.split_brain,
        at_most(30),
        "database",
        2,
    ),
    "replica-lag": Drill(
        "a replica that does not keep up gets no reads; no visit fails",
        database_drills.replica_lag,
        nothing_failed,
        "database",
        2,
    ),
    "replica-full-disk": Drill(
        "a replica that is away for too long is given up, not the primary's disk; no visit fails",
        database_drills.replica_full_disk,
        nothing_failed,
        "database",
        2,
    ),
    "remove-replica": Drill(
        "the replica leaves the inventory, is turned off, and comes back; no visit fails",
        database_drills.remove_replica,
        nothing_failed,
        "database",
        2,
    ),
    "restore": Drill(
        "two moments are restored beside the running site: one as it was noted, one with the orders of then; no visit fails",
        database_drills.restore,
        nothing_failed,
    ),
    "lost-backup-host": Drill(
        "the host that keeps the backups is away: the alarm is raised, no visit fails, nothing of the WAL is missing",
        database_drills.lost_backup_host,
        nothing_failed,
        "backup",
    ),
    "archive-stalled": Drill(
        "WAL does not get to the repository: the alarm is raised, no visit fails, all of it arrives in the end",
        database_drills.archive_stalled,
        nothing_failed,
        "backup",
    ),
    "patroni-adopt": Drill(
        "Patroni takes over the running database; no visit fails, and a stage run afterwards disturbs nobody",
        patroni_drills.adopt,
        nothing_failed,
        "database",
        2,
        asked=True,
    ),
    "patroni-switchover": Drill(
        "with Patroni, a replica takes over and gives back; no visit fails, and a stage run in between takes whoever leads",
        patroni_drills.switchover,
        nothing_failed,
        "database",
        2,
        asked=True,
    ),
    "patroni-kill-primary": Drill(
        "with Patroni, the primary's host loses power: writes go on by themselves within 30 s, nothing is lost, it rejoins by itself",
        patroni_drills.kill_primary,
        at_most(30),
        "database",
        2,
        asked=True,
    ),
    "patroni-cut-primary": Drill(
        "with Patroni, the primary is cut off: it acknowledges nothing, writes go on elsewhere within 30 s, it rejoins by itself",
        patroni_drills.cut_primary,
        at_most(30),
        "database",
        2,
        asked=True,
    ),
    "patroni-freeze": Drill(
        "Patroni hangs on the primary: nothing is lost",
        patroni_drills.freeze,
        at_most(30),
        "database",
        2,
        asked=True,
    ),
    "patroni-etcd-minority": Drill(
        "one member of etcd after the other is away; no visit fails",
        patroni_drills.etcd_minority,
        nothing_failed,
        "database",
        2,
        asked=True,
    ),
    "patroni-leave": Drill(
        "Patroni gives the database back; no visit fails",
        patroni_drills.leave,
        nothing_failed,
        "database",
        2,
        asked=True,
    ),
    "reboot-all": Drill("all hosts lose power; the site serves again within 60 s", reboot_all, at_most(60)),
}


def drill(lab: Lab, name: str, rate: float) -> int:
    """Run one drill, or all of them; gives 1 when a promise was broken."""
    chosen = (
        [one for one, item in DRILLS.items() if not item.asked and len(in_group(lab, item.group)) >= item.hosts]
        if name == "all"
        else [name]
    )
    needed(lab, DRILLS[chosen[0]].group, DRILLS[chosen[0]].hosts)
    broken = []
    for one in chosen:
        console.print(f"\nDrill {one}: {DRILLS[one].what}")
        made = ready_traffic(lab, rate)
        with settled(made):
            given_up = DRILLS[one].act(lab, made) or 0
        summed = show(lab, made, f"drill-{one}")
        problem = DRILLS[one].allowed(summed, len(in_group(lab, "web")))
        if (
            given_up
            and not (summed.doubled or summed.unconfirmed or summed.confirmed_twice or summed.astray)
            and summed.lost <= given_up
        ):
            console.print(f"Of the {given_up} commits that were given up, {summed.lost} were acknowledged orders.")
        elif not summed.kept:
            problem = summed.broken
        console.print(f"[red]broken[/red]  {one}: {problem}" if problem else f"[green]kept[/green]  {one}")
        if problem:
            broken.append(one)
    return 1 if broken else 0
