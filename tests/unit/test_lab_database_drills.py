"""What the drills of the database judge by: each sentence and each order that they look for must be able to be missing."""

from __future__ import annotations

import pytest

from lab import database_drills as drills
from lab.machine import MachineError

MOMENT = drills.Moment("2031-05-01 12:00:00.123456+00", 10.0, 10.5)
SENT = {"early": 1.0, "unanswered": 2.0, "under-way": 9.9, "at-it": 10.2, "late": 11.0, "refused": 12.0}
ANSWERED = {"early": 1.2, "under-way": 10.1, "at-it": 10.4, "late": 11.3}
# As Ansible prints it: broken at 80 columns, quoted where it has a colon.
PROOF = """
    msg:
    - shop as of 2031-05-01 12:00:00.5+00:00 was there 12.5 s after the restore began
        (RTO)
    - 11 tables equal to the last bit, 5 that were written to hold what they may; no damage
        in any page or index
    - had the database's host gone when this began, the writes of at most 3.2 s would
        have been lost (RPO)
"""
SAID = """
    - 'look:    sudo runuser -u pgbackrest -- psql -h /var/lib/restored/20310501T130000Z
        -p 5499 -U postgres shop'
    - 'take:    sudo runuser -u pgbackrest -- pg_dump -h /var/lib/restored/20310501T130000Z
        -p 5499 -U postgres -t <table> shop > <table>.sql'
    - 'remove:  sudo /etc/pgbackrest/control discard /var/lib/restored/20310501T130000Z'
"""


@pytest.mark.parametrize("more", [set(), {"under-way", "at-it", "unanswered"}])
def test_a_copy_has_what_was_acknowledged_before_and_may_have_what_was_under_way(more: set[str]) -> None:
    assert drills.judge_copy(MOMENT, SENT, ANSWERED, {"early", "another"} | more) == (1, 2)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"at-it"}, "lacks 1 orders of 1 .* early"),
        ({"early", "late"}, "1 of 2 that were sent after: late"),
        ({"early", "refused"}, "1 of 2 that were sent after: refused"),
    ],
)
def test_a_copy_that_lacks_an_order_or_has_a_later_one_is_refused(there: set[str], words: str) -> None:
    with pytest.raises(MachineError, match=words):
        drills.judge_copy(MOMENT, SENT, ANSWERED, there)


@pytest.mark.parametrize("key", ["early", "late"])
def test_a_copy_with_nothing_to_compare_proves_nothing(key: str) -> None:
    with pytest.raises(MachineError, match="nothing was compared"):
        drills.judge_copy(MOMENT, {key: SENT[key]}, {key: ANSWERED[key]}, {"early"})


def test_each_sentence_of_the_proof_is_looked_for() -> None:
    assert [words[-5:] for words in drills.proven(PROOF)] == ["(RTO)", "index", "(RPO)"]
    for lost in ("(RTO)", "no damage", "12.5 s"):
        with pytest.raises(MachineError, match="did not say"):
            drills.proven(PROOF.replace(lost, ""))


def test_the_copy_is_asked_and_removed_by_the_commands_that_the_run_says() -> None:
    look, remove = drills.commands_said(SAID)
    assert look == "runuser -u pgbackrest -- psql -h /var/lib/restored/20310501T130000Z -p 5499 -U postgres shop"
    assert remove == "/etc/pgbackrest/control discard /var/lib/restored/20310501T130000Z"
    with pytest.raises(MachineError, match="did not say how"):
        drills.commands_said(SAID.replace("remove:", ""))
