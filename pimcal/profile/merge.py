"""How profiles build on each other: mappings merge key by key, everything else is replaced."""

from __future__ import annotations

from pimcal.profile.yaml_tree import Node


def merged(base: Node, over: Node) -> Node:
    """`base` with `over` laid on it; a value that comes from `over` keeps the position it has there.

    Where `over` names another backend, the base's `device:` section is dropped: it describes a device that
    is no longer there, in keys that the new backend does not know.
    """
    return _deep_merged(_without_device(base) if _switches_backend(base, over) else base, over)


def _deep_merged(base: Node, over: Node) -> Node:
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    entries = dict(base.value)
    for key, node in over.value.items():
        if node.value is None and key in entries:
            del entries[key]  # null undoes what is inherited; one that undoes nothing stays, to be checked
        else:
            entries[key] = _deep_merged(entries[key], node) if key in entries else node
    place = over if over.at.line else base  # a mapping stands in a file, also where an override changes it
    return Node(entries, place.at, place.key_at)


def _switches_backend(base: Node, over: Node) -> bool:
    old, new = child(base, "backend"), child(over, "backend")
    return old is not None and new is not None and old.value != new.value


def _without_device(node: Node) -> Node:
    assert isinstance(node.value, dict)
    return Node({key: value for key, value in node.value.items() if key != "device"}, node.at, node.key_at)


def child(node: Node, key: str) -> Node | None:
    """The value under a key, where the node is a mapping that has it."""
    return node.value.get(key) if isinstance(node.value, dict) else None


def pruned(node: Node) -> Node:
    """The tree without the keys that are null: null means left out."""
    if not isinstance(node.value, dict):
        return node
    kept = {key: pruned(value) for key, value in node.value.items() if value.value is not None}
    return Node(kept, node.at, node.key_at)
