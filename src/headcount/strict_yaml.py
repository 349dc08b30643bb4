"""YAML from strangers: data alone, no more of it than can be read at once, and every fault in a sentence with its line."""

from collections.abc import Collection, Iterator
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from headcount.errors import InputError

_LARGEST = 1_000_000  # bytes
_DEEPEST = 32
_MOST_NODES = 50_000  # with every alias written out
_MOST_TEXT = 1_000_000  # characters, with every alias written out: one long text may stand behind all of them
_LONGEST_NUMBER = 64  # characters
_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset(_CORE + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge"))
_Base: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _Loader(_Base):
    """Words that look like dates stay words."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's name and form)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }


def read_yaml(file: Traversable, *, text_tags: Collection[str] = (), repeated_keys: bool = False) -> Any:
    """What a file holds: mappings with text as keys, lists, text, numbers, booleans and null.

    Args:
        file: a regular one.
        text_tags: of one's own, whose text is taken as it is; every other tag is refused.
        repeated_keys: take the last where a key stands twice in one mapping, which is otherwise refused.

    Raises:
        InputError: not YAML, too large or too deep, a key twice in one mapping, a tag, a number beyond all use.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise _unreadable(file, f"it has more than {_LARGEST:,} bytes")
        text = content.decode("utf-8")
        if why := _too_much(text):
            raise _unreadable(file, why)
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            for node in _nodes(root):
                if why := _wrong(node, text_tags, repeated_keys):
                    raise _unreadable(file, why)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(file, " ".join(str(error).split())) from error


def _too_much(text: str) -> str | None:
    """Why the text is too deep, or too much with its aliases written out. Nothing is built meanwhile."""
    sizes: dict[str, tuple[int, int]] = {}  # of what has an anchor, once it ended: nodes, and characters of their text
    open_nodes: list[tuple[str | None, int, int]] = []  # of each collection around: its anchor, and what was before it
    nodes = characters = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, *_ in open_nodes):
                return f"&{event.anchor} holds itself{_line(event)}"
            more = sizes.get(event.anchor, (1, 0))
            nodes, characters = nodes + more[0], characters + more[1]
        elif isinstance(event, yaml.ScalarEvent):
            nodes, characters = nodes + 1, characters + len(event.value)
            if event.anchor:
                sizes[event.anchor] = 1, len(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes, characters))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes_before, characters_before = open_nodes.pop()
            if anchor:
                sizes[anchor] = nodes - nodes_before, characters - characters_before
        if len(open_nodes) > _DEEPEST:
            return f"it is nested more than {_DEEPEST} deep{_line(event)}"
        if nodes > _MOST_NODES:
            return f"it has more than {_MOST_NODES:,} entries, counting what its aliases repeat{_line(event)}"
        if characters > _MOST_TEXT:
            return f"it has more than {_MOST_TEXT:,} characters, counting what its aliases repeat{_line(event)}"
    return None


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Each node once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += (child for pair in node.value for child in pair)


def _wrong(node: yaml.Node, text_tags: Collection[str], repeated_keys: bool) -> str | None:
    """What is wrong with a node. Keys are made text on the way."""
    if isinstance(node, yaml.ScalarNode) and node.tag in text_tags:
        node.tag = f"{_CORE}str"
    if node.tag not in _TAGS:
        return f"the tag {node.tag.removeprefix(_CORE)!r} stands for more than data{_line(node)}"
    if node.tag in (f"{_CORE}int", f"{_CORE}float") and len(node.value) > _LONGEST_NUMBER:
        return f"a number has {len(node.value):,} digits{_line(node)}"
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                return f"a key is no text{_line(key)}"
            if key.value in keys and not repeated_keys:
                return f"the key {key.value!r:.60} stands twice{_line(key)}"
            keys.add(key.value)
            if key.tag in _TAGS - {f"{_CORE}merge"}:
                key.tag = f"{_CORE}str"
    return None


def _line(place: Any) -> str:
    return f", in line {place.start_mark.line + 1}"


def _unreadable(file: Traversable, why: str) -> InputError:
    return InputError(f"{str(file)!r} cannot be read as YAML: {why}. Correct it and try again.")
