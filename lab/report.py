"""What a person sees: steps with their times, tables, the tail of a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Without a terminal (a pipe, CI) rich would cut tables at 80 columns.
console = Console(width=None if Console().is_terminal else 120, highlight=False)


@dataclass
class Result:
    """One step or scenario: its name, how long it took in seconds, and whether it did what it should."""

    name: str
    seconds: float
    passed: bool
    note: str = ""


@dataclass
class Results:
    """What ran, in order."""

    items: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # what the time given was too short for

    def add(self, name: str, seconds: float, passed: bool, note: str = "") -> Result:
        result = Result(name, seconds, passed, note)
        self.items.append(result)
        return result

    @property
    def failed(self) -> int:
        return sum(not item.passed for item in self.items)

    def closing_line(self) -> str:
        """The line that people and CI read: how many steps did what they should."""
        line = f"{len(self.items) - self.failed} passed, {self.failed} failed"
        return f"{line}, not run for lack of time: {', '.join(self.left_out)}" if self.left_out else line


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 4.2 s, 3 min 05 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s"


def table(columns: list[str], rows: list[list[str]]) -> Table:
    made = Table()
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def results_table(results: Results) -> Table:
    rows = [
        [escape(item.name), "passed" if item.passed else "[red]failed[/red]", duration(item.seconds), escape(item.note)]
        for item in results.items
    ]
    return table(["step", "result", "time", "remark"], rows)


class Progress:
    """A step that runs: call it to say what it is doing right now, and set its outcome where that is not ok."""

    OK, FAILED, NOTHING = "[green]ok[/green]", "[red]failed[/red]", "[yellow]nothing matched[/yellow]"

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show, self.outcome = show, self.OK

    def __call__(self, text: str) -> None:
        self.show(text)


@contextmanager
def step(title: str) -> Iterator[Progress]:
    """Show a step while it runs, then how it ended and how long it took; gives its progress."""
    started = time.monotonic()
    with console.status(escape(title)) as status:
        progress = Progress(lambda text: status.update(f"{escape(title)}  [dim]{escape(text)}[/dim]"))
        try:
            yield progress
        except BaseException:
            progress.outcome = Progress.FAILED
            raise
        finally:
            took = duration(time.monotonic() - started)
            console.print(f"{progress.outcome}  {escape(title)}  [dim]{took}[/dim]")
