"""A YAML file as plain values that know their lines. Refuses what would hang, or hide a mistake."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1024**2
_MAX_DEPTH = 32
_MAX_PROBLEMS = 200
_MAX_NODES = 100_000  # after aliases are followed
_MAX_NUMBER_CHARS = 64  # YAML's base-60 numbers cost quadratic time

_STR, _MAP, _SEQ = "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_MERGE, _NULL = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:null"


class ConfigError(Exception):
    """A configuration that cannot be used. `problems` holds one line each, as does str()."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the line it is on; `value` is a scalar, a list of entries, or a dict of entries."""

    value: Any
    line: int

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value


class Report:
    """Collects problems and warnings of one file as `FILE:LINE: key.path: text`; line 0 is the file as such."""

    def __init__(self, path: Path) -> None:
        self._file = str(path)
        self._problems: list[tuple[int, str]] = []
        self._warnings: list[tuple[int, str]] = []
        self._bad_paths: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """What is worth knowing, in the order of the file."""
        return [text for _, text in sorted(self._warnings, key=lambda w: w[0])]

    def problem(self, line: int, path: str, text: str) -> None:
        """Note something that must be mended. Raises ConfigError when there are too many to read."""
        if len(self._problems) >= _MAX_PROBLEMS:
            raise ConfigError([*self._ordered(), f"{self._file}: more than {_MAX_PROBLEMS} problems"])
        self._bad_paths.append(path)
        self._problems.append((line, f"{self._where(line)}: {path}{': ' if path else ''}{text}"))

    def environment(self, variable: str, text: str) -> None:
        """Note something that must be mended in the environment."""
        self._problems.append((0, f"environment: {variable}: {text}"))

    def warning(self, line: int, text: str) -> None:
        """Note something worth knowing."""
        self._warnings.append((line, f"{self._where(line)}: {text}"))

    def bad(self, *paths: str) -> bool:
        """Whether a problem was found at or under one of these key paths."""
        return any(b == p or b.startswith((f"{p}.", f"{p}[")) for b in self._bad_paths for p in paths)

    def error(self) -> ConfigError | None:
        """All problems, in the order of the file; None where there are none."""
        return ConfigError(self._ordered()) if self._problems else None

    def fatal(self, line: int, text: str) -> ConfigError:
        """All problems with a last one, after which there is nothing to go on with."""
        self.problem(line, "", text)
        return ConfigError(self._ordered())

    def _ordered(self) -> list[str]:
        return [text for _, text in sorted(self._problems, key=lambda p: p[0])]

    def _where(self, line: int) -> str:
        return f"{self._file}:{line}" if line else self._file


def join(path: str, key: str) -> str:
    """A key path, printable and on one line whatever the key holds."""
    shown = key if key.isprintable() and key else ascii(key)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return f"{path}.{shown}" if path else shown


def shown(value: Any) -> str:
    """A value as an error message names it: short, on one line, without the credentials of a URL."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"'{str(value).lower()}'"
    if isinstance(value, str):
        text = re.sub(r"^([a-z+.-]*://)?.*@", r"\g<1>***@", value, flags=re.DOTALL)
        text = text if text.isprintable() else ascii(text)[1:-1]
        return f"'{text if len(text) <= 60 else text[:60] + '…'}'"
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    return f"{value!s:.60}" if isinstance(value, int | float) else f"a {type(value).__name__}"


class _TooDeepError(Exception):
    pass


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _TooDeepError
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_document(path: Path, report: Report) -> Entry:
    """The mapping a YAML file holds; damaged parts are left out and told to `report`.

    Raises ConfigError where there is nothing to go on with.
    """
    text = _text(path, report)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None or root.tag == _NULL:
            raise report.fatal(0, "the file is empty, expected the sections exchanges, nats, …")
        entry = _Builder(loader, report).build(root, "", 0)
    except _TooDeepError:
        raise report.fatal(0, f"expected at most {_MAX_DEPTH} levels of nesting, got more") from None
    except yaml.YAMLError as error:
        raise report.fatal(*_yaml_problem(error)) from None
    if entry is None or not isinstance(entry.value, dict):
        line = root.start_mark.line + 1
        raise report.fatal(line, "expected sections such as `exchanges:`, got another kind of document")
    return entry


def _text(path: Path, report: Report) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise report.fatal(0, f"cannot read the configuration: {reason}") from None
    if len(data) > MAX_BYTES:
        raise report.fatal(0, f"expected at most {MAX_BYTES} bytes, got a longer file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise report.fatal(line, "expected UTF-8 text, got other bytes; save the file as UTF-8") from None


def _yaml_problem(error: yaml.YAMLError) -> tuple[int, str]:
    """Line and text of what PyYAML found; alias names stay out, an unquoted secret may look like one."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = re.sub(r"alias '.*'", "alias", error.problem or error.context or "not understood")
        return (mark.line + 1 if mark else 0), f"invalid YAML: {' '.join(problem.split())}"
    return 0, f"invalid YAML: {' '.join(str(error).split())}"


class _Builder:
    """Turns PyYAML's nodes into entries, counting what aliases multiply."""

    def __init__(self, loader: _Loader, report: Report) -> None:
        self._loader = loader
        self._report = report
        self._nodes = 0

    def build(self, node: yaml.Node, path: str, depth: int) -> Entry | None:
        line = self._count(node, depth)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            items = (self.build(n, f"{path}[{i}]", depth + 1) for i, n in enumerate(node.value, 1))
            return Entry([item for item in items if item is not None], line)
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return Entry(self._mapping(node, path, depth), line)
        self._report.problem(line, path, f"expected plain YAML, got the tag {shown(node.tag)}; remove it")
        return None

    def _count(self, node: yaml.Node, depth: int) -> int:
        """The node's line. Raises ConfigError where aliases have multiplied the document."""
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise self._report.fatal(line, "expected a small document, got aliases that multiply without end")
        return line

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Entry | None:
        line = node.start_mark.line + 1
        if node.tag == _STR:
            return Entry(node.value, line)
        looks = self._loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        if node.tag != looks:
            self._report.problem(line, path, f"expected plain YAML, got the tag {shown(node.tag)}; remove it")
            return None
        try:
            if len(node.value) > _MAX_NUMBER_CHARS:
                raise ValueError
            return Entry(self._loader.construct_object(node), line)
        except (ValueError, OverflowError, yaml.YAMLError):
            self._report.problem(
                line, path, "expected a value, got an impossible number or date; put text in quotes"
            )
            return None

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Entry]:
        own: dict[str, Entry] = {}
        first: dict[str, int] = {}
        merged: dict[str, Entry] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                for source in self._merge_sources(child, path):
                    self._count(source, depth)
                    merged = self._mapping(source, path, depth + 1) | merged
            elif key.tag != _STR or not isinstance(key, yaml.ScalarNode):
                self._report.problem(line, path, "expected a text key, got another kind; put it in quotes")
            elif key.value in first:
                also = f"got it a second time; the first is on line {first[key.value]}"
                self._report.problem(line, join(path, key.value), f"expected each key once, {also}")
            else:
                first[key.value] = line
                entry = self.build(child, join(path, key.value), depth + 1)
                if entry is not None:
                    own[key.value] = Entry(entry.value, line)
        return merged | own

    def _merge_sources(self, node: yaml.Node, path: str) -> Iterator[yaml.MappingNode]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(source, yaml.MappingNode):
                yield source
            else:
                line = source.start_mark.line + 1
                self._report.problem(line, path, "expected sections to merge after `<<:`, got another kind")
