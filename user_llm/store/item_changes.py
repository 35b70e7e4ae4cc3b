"""The changes of what may be answered, which replicas share, as a record of the store."""

import json

from user_llm.answerable import Changes
from user_llm.errors import UserError


def changes_of(record: bytes | None, catalogue: str) -> Changes:
    """What a record holds; None: of a store in which nothing was changed yet.

    Raises:
      UserError: it is of another catalogue than the one with this fingerprint.
    """
    if record is None:
        return Changes()
    kept = json.loads(record)
    if kept["catalogue"] != catalogue:
        raise UserError(
            f"the store's changes of items are of another catalogue ({kept['catalogue'][:12]}, here it is "
            f"{catalogue[:12]}): name another store."
        )
    return Changes(kept["version"], tuple(kept["added"]), frozenset(kept["removed"]))


def record_of(changes: Changes, catalogue: str) -> bytes:
    """The record that `changes_of` reads."""
    version, added, removed = changes
    kept = {"catalogue": catalogue, "version": version, "added": added, "removed": sorted(removed)}
    return json.dumps(kept).encode()
