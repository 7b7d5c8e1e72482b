"""The commands of ./ladder."""

from __future__ import annotations

import argparse
import math
import sys

from rich.markup import escape

from lab import commands, rehearsal
from lab.image import CODENAMES
from lab.machine import MachineError
from lab.model import Lab, this_lab
from lab.report import console

TESTS = ("lint", "unit", "roles", "lab")
CHANGING = ("up", "down", "rehearse", "drill")  # one of them at a time on one lab


def parser() -> argparse.ArgumentParser:
    """The command line; every command has its --help."""
    top = argparse.ArgumentParser(prog="./ladder", description="Stepladder: the lab and the tests.")
    found = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    rate = {"type": float, "default": rehearsal.DEFAULT_RATE, "help": "visits a second (%(default)s)"}
    host = {"metavar": "HOST", "help": "a host of the lab, as ./ladder status names it"}
    debian = {"choices": sorted(CODENAMES), "help": "the hosts' Debian (13, or what the lab has)"}

    one = found.add_parser("up", help="make hosts and run a stage on them; again to repair or grow")
    one.add_argument(
        "stage", nargs="?", type=int, help="the stage's number (the lab's own, or the highest that exists)"
    )
    one.add_argument("--debian", **debian)

    one = found.add_parser("down", help="remove the lab: hosts, their data, network, secrets")
    one.add_argument("--all", action="store_true", help="also the images and package caches that all labs share")

    found.add_parser("status", help="show the lab's hosts, addresses and site")

    one = found.add_parser(
        "ssh",
        help="log in to a host, or run one command there",
        usage="./ladder ssh HOST [COMMAND ...]",
        epilog="Example: ./ladder ssh web1 systemctl status nginx",
    )
    one.add_argument("host", **host)
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run; nothing opens a shell")

    one = found.add_parser(
        "logs",
        help="show a host's journal, or one unit's",
        usage="./ladder logs HOST [UNIT]",
        epilog="Example: ./ladder logs web1 nginx",
    )
    one.add_argument("host", **host)
    one.add_argument("unit", nargs="?", metavar="UNIT", help="one of its systemd units; without it all of the journal")

    one = found.add_parser(
        "play",
        help="ansible-playbook with the lab's inventory and your arguments",
        usage="./ladder play PLAYBOOK [OPTION ...]",
        epilog="Example: ./ladder play playbooks/stage1.yml --check --diff",
    )
    one.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="PLAYBOOK [OPTION ...]", help="as ansible-playbook takes them"
    )

    one = found.add_parser("traffic", help="visitors at a constant rate, and what became of their orders")
    one.add_argument("--seconds", type=int, default=rehearsal.DEFAULT_SECONDS, help="for how long (%(default)s)")
    one.add_argument("--rate", **rate)

    one = found.add_parser("rehearse", help="grow the lab from one stage to another under traffic")
    one.add_argument("start", type=int, metavar="FROM")
    one.add_argument("end", type=int, metavar="TO")
    one.add_argument("--back", action="store_true", help="and down again, as the stages' pages say")
    one.add_argument("--rate", **rate)

    drills = "; ".join(f"{name}: {item.what}" for name, item in rehearsal.DRILLS.items())
    one = found.add_parser("drill", help="do something to the site under traffic, and judge it")
    one.add_argument("name", choices=[*rehearsal.DRILLS, "all"], metavar="NAME", help=f"{drills}; or all")
    one.add_argument("--rate", **rate)

    one = found.add_parser("test", help="run the tests: all of them, or lint, unit, roles or lab")
    one.add_argument("part", nargs="?", choices=TESTS)
    one.add_argument("-k", dest="name", metavar="NAME", help="only tests or scenarios with NAME in their name")
    minutes = (
        "begin no test of the lab after so many minutes, no scenario after six tenths of them; name those left out"
    )
    one.add_argument("--minutes", type=float, default=math.inf, help=minutes)
    one.add_argument("--long", action="store_true", help="the long tests and scenarios too; before a release, say")
    one.add_argument("--debian", **debian)

    one = found.add_parser("bench", help="measure calls, times, requests and transactions a second")
    one.add_argument(
        "stage", nargs="?", type=int, choices=(1, 4), default=1, help="one host with stage 1, or 4, a fleet"
    )
    one.add_argument("--debian", **debian)
    return top


def main(arguments: list[str]) -> int:
    """Run one command; gives the exit code."""
    top = parser()
    if not arguments:
        top.print_help()
        return 0
    # Not argparse's REMAINDER alone: options right after `play` are for ansible-playbook.
    if arguments[0] == "play" and arguments[1:] not in (["-h"], ["--help"]):
        chosen = argparse.Namespace(command="play", arguments=arguments[1:])
    else:
        chosen = top.parse_args(arguments)
    try:
        return run(chosen)
    except MachineError as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on from here.")
        return 130


def run(chosen: argparse.Namespace) -> int:
    """Run the chosen command on this checkout's lab."""
    lab = this_lab()
    if chosen.command not in CHANGING:
        return act(lab, chosen)
    with lab.alone(chosen.command):
        return act(lab, chosen)


def act(lab: Lab, chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "up":
            return commands.up(lab, chosen.stage, chosen.debian)
        case "down":
            return commands.down(lab, chosen.all)
        case "status":
            return commands.status(lab)
        case "ssh":
            return commands.ssh(lab, chosen.host, chosen.words)
        case "logs":
            return commands.logs(lab, chosen.host, chosen.unit)
        case "play":
            return commands.play(lab, chosen.arguments)
        case "traffic":
            return rehearsal.traffic(lab, chosen.seconds, chosen.rate)
        case "rehearse":
            return rehearsal.rehearse(lab, chosen.start, chosen.end, chosen.rate, chosen.back)
        case "drill":
            return rehearsal.drill(lab, chosen.name, chosen.rate)
        case "test":
            from lab import checks

            debian = chosen.debian or commands.DEFAULT_DEBIAN
            return checks.run(lab, chosen.part, chosen.name, debian, chosen.long, chosen.minutes)
        case _:
            from lab import bench

            return bench.run(lab, chosen.debian or commands.DEFAULT_DEBIAN, chosen.stage)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
