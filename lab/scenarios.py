"""Molecule's scenarios, and what their logs must show besides an exit code of zero."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import docker

from lab import ansible, hosts, names
from lab.machine import tail
from lab.model import ROOT, Lab
from lab.report import Results, console

SCENARIO_SECONDS = 1500
DAY = 24 * 3600
NEWEST = 3  # of the scenarios that were changed lately: with more of them ahead, the others would have no turn
BAR = re.compile(r"^\s*│ ?")
PHASE = re.compile(r"^INFO\s+\S+ ➜ (?P<phase>[\w-]+): Executing$")
TAKEN = re.compile(r"'STEPLADDER_ARTIFACTS'\) \}\}/([\w-]+)/")
COUNTED = re.compile(r"(\d+) (passed|failed|error|skipped|deselected)s?\b")


@dataclass(frozen=True)
class Phase:
    """One action of a scenario and what it printed, without colours and molecule's frame."""

    name: str
    text: str


def scenarios(root: Path = ROOT) -> list[str]:
    return sorted(path.parent.name for path in (root / "molecule").glob("*/molecule.yml"))


def is_long(root: Path, scenario: str) -> bool:
    """Whether a scenario takes so long that it is run only when asked for: `# long` begins a line of its molecule.yml."""
    return bool(re.search(r"^# long\b", (root / f"molecule/{scenario}/molecule.yml").read_text(), re.MULTILINE))


def artifacts(root: Path, scenario: str) -> set[str]:
    """The names of the artifacts that a scenario needs: those that its prepare.yml copies."""
    prepare = root / f"molecule/{scenario}/prepare.yml"
    return set(TAKEN.findall(prepare.read_text())) if prepare.exists() else set()


def git(root: Path, *words: str) -> str:
    """What git says of the kit's repository; nothing where there is none."""
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout
    except OSError:
        return ""


def newest(root: Path) -> list[str]:
    """The scenarios that commits of the last day before the newest one changed, or the role of their name; the last first.

    At most NEWEST of them. A first commit is left aside: in a shallow clone it is all that there is, and changed everything.
    """
    last = int(git(root, "log", "-1", "--format=%ct") or 0)
    command = ["-c", "log.showRoot=false", "log", "--format=", "--name-only", "--relative", f"--since={last - DAY}"]
    parts = [line.split("/") for line in git(root, *command, "--", "molecule", "roles").splitlines()]
    known = scenarios(root)
    return list(dict.fromkeys(part[1] for part in parts if len(part) > 2 and part[1] in known))[:NEWEST]


def seed(root: Path) -> int:
    """A number that is another one for each commit, also in a shallow clone; 0 outside of git."""
    return int(git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip() or "0", 16)


def in_turn(chosen: list[str], first: list[str], number: int) -> list[str]:
    """The scenarios of `first`, then the others from one on that the number decides, all round."""
    ahead = [scenario for scenario in first if scenario in chosen]
    rest = [scenario for scenario in chosen if scenario not in ahead]
    start = number % len(rest) if rest else 0
    return ahead + rest[start:] + rest[:start]


def phases(log: str) -> list[Phase]:
    """A scenario's log cut into its actions, in the order they ran."""
    found: list[tuple[str, list[str]]] = []
    for line in ansible.COLOUR.sub("", log).splitlines():
        start = PHASE.match(line)
        if start:
            found.append((start["phase"], []))
        elif found:
            found[-1][1].append(BAR.sub("", line))
    return [Phase(name, "\n".join(lines)) for name, lines in found]


def outcomes(text: str) -> dict[str, int]:
    """What pytest's closing line counts: passed, failed, error, skipped, deselected; empty without such a line."""
    closing = [line for line in text.splitlines() if COUNTED.search(line) and " in " in line]
    return {outcome: int(count) for count, outcome in COUNTED.findall(closing[-1])} if closing else {}


def tests_run(text: str) -> int:
    """How many tests pytest's closing line counts as run."""
    return sum(count for outcome, count in outcomes(text).items() if outcome not in ("skipped", "deselected"))


def complaints(log: str) -> list[str]:
    """What a scenario's log lacks although molecule was content: tests, a second run, an honest check mode."""
    ran = phases(log)
    order = [phase.name for phase in ran]
    found = []
    if "idempotence" not in order:
        found.append("the sequence has no idempotence run")
    verified = [phase for phase in ran if phase.name == "verify"]
    if not verified or tests_run(verified[-1].text) == 0:
        found.append("verify ran no test (test files belong in molecule/<scenario>/tests/)")
    converged = order.index("idempotence") if "idempotence" in order else len(order)
    checked = [phase for phase in ran[converged:] if phase.name == "check"]
    if not checked:
        found.append("no check run after idempotence")
        return found
    counts = ansible.recap(checked[-1].text)
    if not counts:
        found.append("the check run after idempotence has no recap")
    changed = {host: count["changed"] for host, count in counts.items() if count["changed"]}
    if changed:
        listed = ", ".join(f"{host}: {count}" for host, count in changed.items())
        found.append(f"check mode says that a converged host would change ({listed})")
    return found


def failing_phase(log: str) -> str:
    """The end of the log's last action that did something: where a failed scenario stopped."""
    ran = [phase for phase in phases(log) if phase.name not in ("destroy", "cleanup")]
    if not ran:
        return tail(ansible.COLOUR.sub("", log), 40)
    last = ran[-1]
    return f"{last.name}:\n{ansible.failure(last.text, 60) if last.name != 'verify' else tail(last.text, 60)}"


class Runner:
    """Runs scenarios for one Debian version; each leaves a log and no container."""

    def __init__(self, client: docker.DockerClient, lab: Lab, debian: str, artifacts: Path) -> None:
        self.client, self.debian, self.artifacts = client, debian, artifacts
        self.logs = lab.logs
        self.prefix = f"l{hashlib.sha256(lab.name.encode()).hexdigest()[:5]}"

    def state(self, scenario: str) -> Path:
        """Where molecule remembers what it has made."""
        return self.logs.parent / "molecule" / scenario

    def environment(self, scenario: str) -> dict[str, str]:
        return {
            "COLUMNS": "250",  # molecule breaks lines there, in the middle of what is read afterwards
            "STEPLADDER_DEBIAN": self.debian,
            # Names of its own: a scenario that someone keeps for trying things out is left alone.
            "STEPLADDER_SCENARIO": f"{self.prefix}-{scenario}",
            "MOLECULE_EPHEMERAL_DIRECTORY": str(self.state(scenario)),
            "STEPLADDER_NETWORK": names.MOLECULE_NETWORK,
            "STEPLADDER_ARTIFACTS": str(self.artifacts),
        }

    def run(self, scenario: str, results: Results) -> None:
        """Run one scenario and say what came of it; a failure shows the failing phase and the failed units."""
        started = time.monotonic()
        log = self.logs / f"{scenario}-debian{self.debian}.log"
        self.destroy(scenario)
        command = [str(ansible.BIN / "molecule"), "test", "-s", scenario, "--destroy", "never"]
        try:
            code, output = self.molecule(command, scenario, log)
            problems = complaints(output) if code == 0 else [f"molecule ended with {code}"]
            if problems:
                self.explain(scenario, output, problems, log)
        finally:
            self.destroy(scenario)
        count = sum(tests_run(phase.text) for phase in phases(output) if phase.name == "verify")
        remark = f"{count} tests" if not problems else "; ".join(problems)
        seconds = time.monotonic() - started
        results.add(f"role {scenario} (Debian {self.debian})", seconds, not problems, remark)
        console.print(f"{'ok' if not problems else 'failed'}  role {scenario}  {seconds:.0f} s  {remark}", markup=False)

    def molecule(self, command: list[str], scenario: str, log: Path) -> tuple[int, str]:
        """Run molecule with its output in a log; a scenario over its time ends with code 124."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = ansible.surroundings(self.environment(scenario))
        with log.open("w") as stream:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    timeout=SCENARIO_SECONDS,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        return code, log.read_text(errors="replace")

    def containers(self, scenario: str) -> list:
        label = f"{names.LAB_LABEL}={names.MOLECULE}"
        found = self.client.containers.list(all=True, filters={"label": label})
        return [item for item in found if item.name.startswith(f"{self.prefix}-{scenario}-")]

    def explain(self, scenario: str, output: str, problems: list[str], log: Path) -> None:
        parts = [f"--- {scenario}: {'; '.join(problems)} (log: {log})", failing_phase(output)]
        parts += [hosts.diagnosis(container) for container in self.containers(scenario)]
        console.print("\n".join(parts), markup=False, soft_wrap=True)

    def destroy(self, scenario: str) -> None:
        """Remove a scenario's containers and what molecule remembers, also those of a run that was killed."""
        for container in self.containers(scenario):
            container.remove(force=True, v=True)
        shutil.rmtree(self.state(scenario), ignore_errors=True)
