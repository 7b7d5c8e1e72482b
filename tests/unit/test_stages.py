"""The stage playbooks: in which order their layers run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kit import ROOT

STAGES = sorted(ROOT.glob("playbooks/stage*.yml"))


def layers(playbook: Path) -> list[str]:
    """The names of the layers that a playbook imports, those of its layers too ("lock"), in their order."""
    found = []
    for play in yaml.safe_load(playbook.read_text()):
        if imported := play.get("import_playbook"):
            path = playbook.parent / imported
            found += [path.stem, *layers(path)]
    return found


@pytest.mark.parametrize("playbook", STAGES, ids=lambda path: path.stem)
def test_the_deploy_lock_is_held_over_all_that_changes_a_release(playbook: Path) -> None:
    order = layers(playbook)
    assert order.count("lock") == order.count("unlock") == 1
    held = order[order.index("lock") : order.index("unlock")]
    assert {name for name in order if "release" in name} <= set(held)
    assert "workers" not in order or "workers" in held
