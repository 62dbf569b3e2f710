"""Configuration files: the words of a command, as YAML that is checked key by key.

A key is an option of the command, spelled as in Python (``chip_size``) or as on the command line (``chip-size``), or
the name of a positional argument (``chips``). Values pass the same checks as words of the command line do.
"""

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from geolearn._version import __version__
from geolearn.cli.messages import option_names
from geolearn.errors import ConfigError, UnknownNameError

SUFFIXES = ('.yaml', '.yml')

WITHOUT = ('benchmark', 'info', 'weights', 'study')
"""Commands without configuration files: some take YAML of their own, the others have commands of their own."""

COMMAND = 'command'
"""The key that may name the command a file is for."""

MAX_BYTES = 2**20

HEADER = '# geolearn '

NOT_GIVEN = ('', 'null', '~')

SWITCHES = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}

NOT_WRITTEN = ('help', 'resume', 'overwrite', 'verbose')
"""Options that say how a run goes, and not what comes out."""

PATHS = ('chips', 'images', 'valid_path', 'weights', 'working_dir')
"""Options whose values may be paths; they are written in full, so that a file works from any folder."""

FILES = ('backbone', 'split')
"""Options whose values may be files, or words that a folder may be called too."""

TARGETS = ('name', 'report')
"""Options whose values are written to; a bare name of a model is none."""


class Entry(NamedTuple):
    """One key of a file.

    Args:
        line: Of the key, from 1.
        value: A text, a list of texts, or a mapping of texts to texts.
    """

    line: int
    value: str | list[str] | dict[str, str]


def expand_config(words: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Replace a configuration file after a command by the words that it stands for.

    Args:
        words: Of the command line, such as ``['train', 'floods.yaml', '--epochs', '5']``; options after the file win.
        commands: Parsers by name of the command.

    Returns:
        The words to parse; `words` themselves where the first after the command names no configuration file.

    Raises:
        ConfigError: If the file cannot be read, or a value is of the wrong kind.
        UnknownNameError: If the command has no such option; the nearest are named.
    """
    if len(words) < 2 or words[0] not in commands or words[0] in WITHOUT or not words[1].lower().endswith(SUFFIXES):
        return list(words)
    command, name, *rest = words
    if rest and not rest[0].startswith('-'):
        raise ConfigError(f'{name} holds what {command} needs; after it only options may follow, found {rest[0]!r}')
    return [command, *config_words(commands[command], command, Path(name)), *rest]


def config_words(parser: argparse.ArgumentParser, command: str, path: Path) -> list[str]:
    """Return the words of the command line that a configuration file stands for, positional arguments first."""
    actions = _actions_by_key(parser)
    entries = read_config(path)
    meant = entries.pop(COMMAND, None)
    if meant is not None and meant.value != command:
        raise ConfigError(f'{path}:{meant.line}: the file is for {meant.value!r}, not for {command!r}')
    given: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if key not in actions:
            unknown = UnknownNameError('key', key, {action.dest for action in actions.values()})
            raise ConfigError(f'{path}:{entry.line}: {unknown}') from unknown
        action = actions[key]
        if action.dest in given:
            raise ConfigError(f'{path}:{entry.line}: {key!r} and another key stand for the same option; keep one')
        given[action.dest] = _words_of(action, entry, f'{path}:{entry.line}: {key}')
    positionals = [action.dest for action in _positionals(parser)]
    if missing := [name for name in positionals if not given.get(name)]:
        raise ConfigError(f'{path} lacks {" and ".join(missing)}; add a line such as "{missing[0]}: ..."')
    first = [word for name in positionals for word in given[name]]
    return first + [word for name, words in given.items() if name not in positionals for word in words]


def read_config(path: Path) -> dict[str, Entry]:
    """Read a file of keys and values; every scalar is a text, as it is on the command line.

    Raises:
        ConfigError: If the file cannot be read or is no such file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f'{path} is larger than a configuration: {path.stat().st_size} bytes')
        root = yaml.compose(path.read_text(encoding='utf-8'), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ConfigError(f'cannot read {path}: {error.strerror or error}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f'{path} is not YAML: {" ".join(str(error).split())}') from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f'{path} must hold lines such as "epochs: 10"')
    entries: dict[str, Entry] = {}
    for key, line, value in _pairs(root, path):
        if key in entries:
            raise ConfigError(f'{path}:{line}: {key!r} stands in lines {entries[key].line} and {line}; keep one')
        entries[key] = Entry(line, _plain(value, f'{path}:{line}: {key}'))
    return entries


def write_config(path: Path, arguments: argparse.Namespace) -> Path:
    """Write the file that runs a command again as it ran.

    Args:
        path: To write. A file that a person wrote, or that the command was run with, stays: the name gets ``_run``.
        arguments: As parsed, with the parser of the command as `command_parser`.

    Returns:
        The file written.
    """
    from geolearn.files import atomic_write

    given = getattr(arguments, 'config_file', None)
    if path.exists() and (not _is_ours(path) or (given is not None and path.samefile(given))):
        path = path.with_name(f'{path.stem}_run{path.suffix}')
    values: dict[str, Any] = {COMMAND: arguments.command}
    for action in arguments.command_parser._actions:
        value = getattr(arguments, action.dest, None)
        if action.dest in NOT_WRITTEN or value is None or value is False or value == action.default == []:
            continue
        values[action.dest] = _stored(_in_full(value, action.dest))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    with atomic_write(path) as part:
        part.write_text(f'{HEADER}{__version__}: geolearn {arguments.command} {path.name}\n{text}', encoding='utf-8')
    return path


def _is_ours(path: Path) -> bool:
    with path.open(encoding='utf-8', errors='replace') as file:
        return file.read(len(HEADER)) == HEADER


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]


def _actions_by_key(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    by_option = {option: action for action in parser._actions for option in action.option_strings}
    keys = {action.dest: action for action in parser._actions if action.dest != 'help'}
    # --no-cog is the key "cog", which may be false
    keys |= {option.lstrip('-'): action for option, action in by_option.items() if action.const is not False}
    python = {name: option for name, option in option_names(parser).items() if ' ' not in option}
    keys |= {name: by_option[option] for name, option in python.items()}
    return {name: action for name, action in keys.items() if action.dest != 'help'}


def _pairs(node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, int, yaml.Node]]:
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f'{path}:{line}: a key must be a word')
        yield key.value, line, value


def _plain(node: yaml.Node, where: str) -> str | list[str] | dict[str, str]:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [str(item.value) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        pairs = [item for pair in node.value for item in pair]
        if all(isinstance(item, yaml.ScalarNode) for item in pairs):
            return {str(key.value): str(value.value) for key, value in node.value}
    raise ConfigError(f'{where} must be a value, a list of values or a mapping of values, not deeper')


def _words_of(action: argparse.Action, entry: Entry, where: str) -> list[str]:
    """Return what stands on the command line for a key: nothing where it is not given or switched off."""
    value = entry.value
    if isinstance(value, str) and value in NOT_GIVEN:
        return []
    option = action.option_strings[-1] if action.option_strings else None
    if option is not None and action.nargs == 0:
        return _switch(action, option, value, where)
    if isinstance(value, dict):
        value = [f'{key}={text}' for key, text in value.items()]
    if isinstance(value, str):
        if option is None:
            return [value]
        # nargs='+' takes no value after a sign of equality that begins with a dash
        return [f'{option}={value}'] if action.nargs is None else [option, value]
    if action.nargs is None and action.default == []:  # an option that is given several times
        return [f'{option}={text}' for text in value]
    if action.nargs is None:
        raise ConfigError(f'{where} takes one value, got a list of {len(value)}')
    return [*([option] if option else []), *value]


def _switch(action: argparse.Action, option: str, value: Any, where: str) -> list[str]:
    if not isinstance(value, str) or value.lower() not in SWITCHES:
        raise ConfigError(f'{where} must be true or false, got {value!r}')
    wanted = SWITCHES[value.lower()]
    on = wanted == action.const
    if not on and wanted != bool(action.default if action.default is not None else not action.const):
        raise ConfigError(f'{where} cannot be {value}; leave it out')
    return [option] if on else []


def _in_full(value: Any, name: str) -> Any:
    """Return the value of an option with the paths in it in full."""
    if isinstance(value, list):
        return [_in_full(item, name) for item in value]
    if not isinstance(value, str):
        return value
    place = os.path.expanduser(value)
    is_path = name in PATHS and os.path.exists(place)
    is_path |= name in FILES and os.path.isfile(place)
    # the name of a model without folder and suffix goes beside the chips
    is_path |= name in TARGETS and (value != os.path.basename(value) or bool(os.path.splitext(value)[1]))
    return os.path.abspath(place) if is_path else value


def _stored(value: Any) -> Any:
    """Return a value as the file holds it."""
    if isinstance(value, list) and value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        return dict(value)
    if isinstance(value, list | tuple):
        return ['none' if item is None else _stored(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
