"""YAML from strangers, made harmless: bounded, and without the traps of YAML 1.1.

Configs arrive from browsers and queues. A 400-byte text with nested aliases can expand to
gigabytes, ``012`` means 10 and ``1:30`` means 90 in YAML 1.1, ``1e-4`` is a string there, and a
key given twice silently wins over the first. Here the document is measured before it is built,
scalars follow the YAML 1.2 core schema, and a doubled key is an error. Names are text, whatever
they look like.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from loradash.domain.characters import find_unprintable, named_character, with_pairs_joined
from loradash.domain.json_text import parsed_json
from loradash.errors import InvalidConfig

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 20_000  # after aliases are expanded, as are MAX_CHARACTERS

_MERGE = "tag:yaml.org,2002:merge"
_DATASETS = frozenset({"folder_path", "dataset_path", "dataset"})
_NAMES = _DATASETS | {"regularization", "name", "trigger_word"}


class _CoreSchemaLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the YAML 1.2 core schema for plain scalars.

    Escapes give no characters that couldn't stand there without one. Pairs of surrogates are
    joined: JSON, which YAML contains, writes emoji so.
    """

    def scan_flow_scalar(self, style: str) -> yaml.ScalarToken:
        """Read a text in quotes, the only place of escapes."""
        start = self.get_mark()
        try:
            token = super().scan_flow_scalar(style)
        except (ValueError, OverflowError) as error:  # by chr()
            raise yaml.scanner.ScannerError(
                None, None, r"an escape \U beyond U+10FFFF: there is no such character", start
            ) from error
        token.value = with_pairs_joined(token.value)
        if found := find_unprintable(token.value):
            raise yaml.scanner.ScannerError(
                None, None, f"{named_character(found.group())} can't be in a text; remove it", start
            )
        return token


_FLOAT = (
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN))$"
)
_CoreSchemaLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"^(?:<<)$", "<"),
):
    _first_characters = [*_first.replace("\0", ""), *([""] if "\0" in _first else [])]
    _CoreSchemaLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first_characters
    )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 100:
        raise yaml.constructor.ConstructorError(
            None, None, "a number of more than 100 digits", node.start_mark
        )
    return int(text)


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, value_node in node.value:
        if key_node.tag == _MERGE:
            continue
        _keep_name(key_node, value_node)
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be plain text", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands here twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _keep_name(key: yaml.Node, value: yaml.Node) -> None:
    """Let a dataset's name be the text that was written: ``2026``, ``1e3`` and ``null`` are names.

    A null of an optional key, and one that is written as '' or '~', stays one.
    """
    if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
        return
    kind = value.tag.removeprefix("tag:yaml.org,2002:")
    is_name = key.value in _NAMES and kind in ("int", "float", "bool")
    is_word = key.value in _DATASETS and kind == "null" and value.value not in ("", "~")
    if is_name or is_word:
        value.tag = "tag:yaml.org,2002:str"


_CoreSchemaLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_CoreSchemaLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_CoreSchemaLoader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {
        *yaml.SafeDumper.yaml_implicit_resolvers,
        *_CoreSchemaLoader.yaml_implicit_resolvers,
    }
}


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


_TOML = re.compile(r"^[ \t]*(?:\[{1,2}[\w.-]+\]{1,2}|[\w-]+[ \t]*=.*)[ \t]*\r?$", re.MULTILINE)


def _remedy(text: str, remedy: str) -> str:
    """Say what to do; a config of sd-scripts in TOML needs a conversion."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or not _TOML.fullmatch(lines[0].lstrip("\ufeff")):
        return remedy
    return (
        "It looks like TOML: make a config of kohya's sd-scripts ours with "
        "`loradash convert-config FILE`."
    )


_KINDS: dict[Any, str] = {str: "a text", list: "a list"}


def load_mapping(text: str, what: str = "config") -> dict[str, Any]:
    """Parse one YAML document that must be a mapping with text keys.

    Raises `InvalidConfig` with line and column for anything else, for more than `MAX_CHARACTERS`,
    `MAX_DEPTH` or `MAX_NODES`, and for more than one document.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidConfig(
            f"{what}: {len(text):,} characters of YAML, at most {MAX_CHARACTERS:,} are read",
            remedy="Remove what isn't configuration; datasets are uploaded as files.",
        )
    if found := find_unprintable(text):
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        raise InvalidConfig(
            f"{what}: line {line}, column {column}: {named_character(found.group())} can't be in "
            "a text",
            remedy="Remove it, and save the file as UTF-8 text.",
        )
    try:
        data = parsed_json(text, what, MAX_DEPTH, MAX_NODES)
        if data is None:
            _measure(text, what)
            data = yaml.load(text, Loader=_CoreSchemaLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise InvalidConfig(
            f"{what}: {_describe(error)}", remedy=_remedy(text, "Correct the YAML.")
        ) from error
    except RecursionError as error:
        raise InvalidConfig(f"{what}: nested too deeply", remedy="Flatten the YAML.") from error
    if not isinstance(data, dict):
        kind = "empty" if data is None else _KINDS.get(type(data), "a single value")
        raise InvalidConfig(
            f"{what}: the document is {kind}, but must be a mapping of keys to values",
            remedy=_remedy(
                text, "Start with 'job: extension' or with the short form ('dataset: ...')."
            ),
        )
    mapping: dict[str, Any] = _with_text_keys(data, what)
    return mapping


def dump_mapping(data: dict[str, Any]) -> str:
    """Write a mapping as YAML that `load_mapping` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _measure(text: str, what: str) -> None:  # noqa: C901 - one branch per kind of event
    """Walk the event stream, which costs no more than the text, and refuse bombs."""
    anchors: dict[str, tuple[int, int]] = {}  # nodes and characters that each stands for
    open_nodes: list[tuple[str | None, int, int]] = []  # anchor, and both counts at its start
    nodes = characters = 0
    for event in yaml.parse(text, Loader=_CoreSchemaLoader):
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise InvalidConfig(
                f"{what}: the tag {tag}{_line(event)}",
                remedy="Write plain values; tags aren't read.",
            )
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise InvalidConfig(
                    f"{what}: the alias *{event.anchor}{_line(event)} stands inside the value "
                    "that it names, or before it",
                    remedy="Write the value out.",
                )
            more_nodes, more_characters = anchors[event.anchor]
            nodes += more_nodes
            characters += more_characters
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            characters += len(event.value)
            if event.anchor:
                anchors[event.anchor] = (1, len(event.value))
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes, characters))
            nodes += 1
            if len(open_nodes) > MAX_DEPTH:
                raise InvalidConfig(
                    f"{what}: nested more than {MAX_DEPTH} levels deep{_line(event)}",
                    remedy="Flatten the YAML.",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes_before, characters_before = open_nodes.pop()
            if anchor:
                anchors[anchor] = (nodes - nodes_before, characters - characters_before)
        if nodes > MAX_NODES or characters > MAX_CHARACTERS:
            raise InvalidConfig(
                f"{what}: more than {MAX_NODES:,} values or {MAX_CHARACTERS:,} characters "
                "(aliases count as what they stand for)",
                remedy="Write the values out and shorten the lists.",
            )


def _line(event: yaml.Event) -> str:
    return f" in line {event.start_mark.line + 1}" if event.start_mark else ""


def _describe(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        problem = error.problem or error.context or "can't be read"
        if "'\\t'" in problem:
            problem = "a tab; YAML is indented with spaces"
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return f"can't be read as YAML: {error}".splitlines()[0]


def _with_text_keys(data: Any, where: str) -> Any:
    if isinstance(data, dict):
        for key in data:
            if not isinstance(key, str):
                raise InvalidConfig(
                    f"{where}: the key {key!r} isn't text", remedy="Put the key in quotes."
                )
        return {key: _with_text_keys(value, f"{where}.{key}") for key, value in data.items()}
    if isinstance(data, list):
        return [_with_text_keys(value, f"{where}[{n}]") for n, value in enumerate(data)]
    return data
