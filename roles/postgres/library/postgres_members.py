#!/usr/bin/python
"""What a member keeps ready for the others: a replication slot each, and the right to rewind from it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_members
short_description: Make replication slots, and let the replication user run what pg_rewind needs
options:
  version:
    description: Major version.
    type: str
    required: true
  cluster:
    description: The instance's name.
    type: str
    required: true
  slots:
    description: Slots to make; they keep nothing until somebody uses them.
    type: list
    elements: str
    default: []
  rewinds:
    description: The role that gets the right to rewind; empty for none.
    type: str
    default: ""
author: Stepladder
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_replication import FUNCTIONS
from ansible.module_utils.postgres_server import Refused, Server, literal, places


def statements(slots, rewinds):
    made = [
        "select pg_create_physical_replication_slot(%s)"
        " where not exists (select from pg_replication_slots where slot_name = %s);" % (literal(name), literal(name))
        for name in slots
    ]
    if rewinds:
        role = '"%s"' % rewinds.replace('"', '""')
        made += ["grant connect on database postgres to %s;" % role]
        made += ["grant execute on function %s to %s;" % (name, role) for name in FUNCTIONS]
    return made


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "slots": {"type": "list", "elements": "str", "default": []},
            "rewinds": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = statements(params["slots"], params["rewinds"])
    if wanted and not module.check_mode:
        try:
            Server(params["version"], places(params["version"], params["cluster"])[1]).run(
                "postgres", "\n".join(wanted)
            )
        except Refused as refusal:
            module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=bool(wanted), slots=params["slots"])


if __name__ == "__main__":
    main()
