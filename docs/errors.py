"""Every code of an error or a warning, as the sources have them: writes docs/errors.md.

    python docs/errors.py            # writes the page

Read from the syntax tree, nothing is imported: a call of a class of ``vntools.base.errors``,
of ``warn(code, text)``, or of ``warnings.append((code, text))``. A code is a literal there, or
can be followed to literals: a choice of two, a parameter to the calls, a loop over a table.
"""

from __future__ import annotations

__all__ = ["Site", "page", "read", "sources"]

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "errors.md"
_TREES = ("vntools", "models", "export")
_BASE = "VntoolsError"
_CODE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")
_DEEPEST = 6  # steps from a name to its literal
_SHOWN = 4  # texts of one code
_HEAD = """\
# Codes of errors and warnings

Written by `python docs/errors.py` from the sources. An error is one line on stderr,
`vntools COMMAND: error[CODE]: WHAT; WHAT TO DO`, and the exit status; with `--json` the code
is `error.code` of the document on stdout. A warning is `warning[CODE]: WHAT`, and the work
goes on. A code never changes its meaning. `...` stands for what differs from case to case.

"""


@dataclass(frozen=True)
class Site:
    """A place that makes an error or a warning.

    Attributes:
        status: exit status; ``warning``; or ``128 + signal``.
        says: the texts it may have, what differs as ``...``.
        hints: what to do next, likewise.
        where: file and line.
    """

    code: str
    status: str
    says: tuple[str, ...]
    hints: tuple[str, ...]
    where: str


def sources() -> dict[str, str]:
    """The package's files, by path relative to the repository."""
    paths = sorted(p for tree in _TREES for p in (ROOT / tree).rglob("*.py"))
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}


def read(files: Mapping[str, str]) -> tuple[list[Site], list[str]]:
    """The sites of all files, and the places whose code cannot be read, in words."""
    reader = _Reader({name: ast.parse(text) for name, text in files.items()})
    found: list[Site] = []
    faults: list[str] = []
    for place in reader.places:
        for status, code, says, hint in reader.made(place):
            where = f"{place.file}:{place.call.lineno}"
            codes = reader.literals(code, place)
            if codes is None or not all(map(_CODE.fullmatch, codes)):
                faults.append(f"{where}: no literal code: {ast.unparse(code)}")
            texts, hints = (tuple(reader.texts(e, place)) if e else () for e in (says, hint))
            paired = codes is not None and 1 < len(codes) == len(texts)  # of one table
            found += [
                Site(c, status, texts[i : i + 1] if paired else texts, hints, where)
                for i, c in enumerate(codes or ())
            ]
    return found, faults


def page(sites: list[Site]) -> str:
    """The page: a row for each code."""
    rows = ["| code | exit | says | what to do |", "|---|---|---|---|"]
    for code in sorted({s.code for s in sites}):
        of_code = [s for s in sites if s.code == code]
        status = " or ".join(dict.fromkeys(s.status for s in of_code))
        says = _cell([t for s in of_code for t in s.says]) or "the cause, in its own words"
        hints = _cell([t for s in of_code for t in s.hints])
        rows.append(f"| `{code}` | {status} | {says} | {hints} |")
    return _HEAD + "\n".join(rows) + "\n"


def _cell(texts: list[str]) -> str:
    known = [t for t in dict.fromkeys(texts) if re.search(r"[a-z]", t)]  # not "...: ..."
    more = [f"{len(known) - _SHOWN} more"] if len(known) > _SHOWN else []
    return "<br>".join(t.replace("|", "\\|") for t in known[:_SHOWN] + more)


@dataclass(frozen=True)
class _Place:
    """A call, and the function and the class around it."""

    file: str
    call: ast.Call
    function: ast.FunctionDef | None
    owner: ast.ClassDef | None


@dataclass
class _Reader:
    trees: Mapping[str, ast.Module]
    places: list[_Place] = field(default_factory=list)
    statuses: dict[str, str] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)  # classes of errors that write their own text

    def __post_init__(self) -> None:
        for file, tree in self.trees.items():
            self._walk(tree, file, None, None)
        nodes = [n for tree in self.trees.values() for n in ast.walk(tree)]
        classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
        self.statuses[_BASE] = "70"
        before = 0
        while before != len(self.statuses):  # a class may stand in front of its base
            before = len(self.statuses)
            for node in classes:
                bases = [ast.unparse(b) for b in node.bases]
                inherited = [self.statuses[b] for b in bases if b in self.statuses]
                if inherited:
                    self.statuses[node.name] = _own_status(node) or inherited[0]
                    if any(isinstance(n, ast.FunctionDef) for n in node.body):
                        self.own.add(node.name)

    def _walk(
        self,
        node: ast.AST,
        file: str,
        function: ast.FunctionDef | None,
        owner: ast.ClassDef | None,
    ) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node
        elif isinstance(node, ast.ClassDef):
            function, owner = None, node
        elif isinstance(node, ast.Call):
            self.places.append(_Place(file, node, function, owner))
        for child in ast.iter_child_nodes(node):
            self._walk(child, file, function, owner)

    def made(
        self, place: _Place
    ) -> Iterator[tuple[str, ast.expr, ast.expr | None, ast.expr | None]]:
        """Status, code, text and hint of the error or the warning that a call makes."""
        call, name = place.call, _called(place.call)
        first, second = (*call.args, None, None)[:2]
        hint = next((k.value for k in call.keywords if k.arg == "hint"), None)
        if first is None:
            return
        if name in self.statuses and name not in self.own:
            yield self.statuses[name], first, second, hint
        elif name == "warn" and second is not None:
            yield "warning", first, second, None
        elif ast.unparse(call.func).endswith("warnings.append") and isinstance(
            first, ast.Tuple
        ):
            yield "warning", first.elts[0], first.elts[1], None
        owner = place.owner.name if place.owner is not None else ""
        if owner in self.own and ast.unparse(call.func) == "super().__init__":
            yield self.statuses[owner], first, second, hint

    def literals(
        self, code: ast.expr, place: _Place, deep: int = _DEEPEST
    ) -> list[str] | None:
        """The codes that an expression may be, none for one handed on; None where unknown."""
        match code:
            case ast.Constant(value=str(value)):
                return [value]
            case ast.Attribute(attr="code"):
                return []
            case ast.JoinedStr():
                return self._joined(code, place, deep)
            case _:
                pass
        if not deep:
            return None
        found = [self.literals(e, p, deep - 1) for e, p in self._from(code, place)]
        known = [f for f in found if f is not None]
        return [c for f in known for c in f] if found and len(known) == len(found) else None

    def _joined(self, code: ast.JoinedStr, place: _Place, deep: int) -> list[str] | None:
        made = [""]
        for part in code.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            known = self.literals(inner, place, deep - 1) if deep else None
            if not known:
                return None
            made = [a + b for a in made for b in known]
        return made

    def texts(self, text: ast.expr, place: _Place, deep: int = _DEEPEST) -> list[str]:
        """What a text may say, with ``...`` for what is not in the sources."""
        match text:
            case ast.Constant(value=str(value)):
                return [value]
            case ast.JoinedStr(values=parts):
                made = [""]
                for part in parts:
                    said = self._part(part, place)
                    made = [a + b for a in made for b in said]
                return [re.sub(r"(\.\.\.)+", "...", m) for m in made]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                pairs = (self.texts(e, place, deep) for e in (left, right))
                return ["".join(t[0] for t in pairs)]
            case _:
                pass
        found = list(self._from(text, place)) if deep else []
        return [t for e, p in found for t in self.texts(e, p, deep - 1)] or ["..."]

    def _part(self, part: ast.expr, place: _Place) -> list[str]:
        """A piece of an f-string: as it stands, from a table, or ``...``."""
        match part:
            case ast.Constant(value=str(value)):
                return [value]
            case ast.FormattedValue(value=ast.Name(id=name)) if place.function is not None:
                looped = self._looped(name, place.function, place)
                known = [e.value for e, _ in looped if isinstance(e, ast.Constant)]
                return [str(v) for v in known] or ["..."]
            case _:
                return ["..."]

    def _from(self, value: ast.expr, place: _Place) -> Iterator[tuple[ast.expr, _Place]]:
        """What an expression stands for, one step on."""
        match value:
            case ast.IfExp(body=body, orelse=other):
                yield from ((body, place), (other, place))
            case ast.Name(id=name):
                if place.function is not None:
                    yield from self._named(name, place.function, place)
            case ast.Attribute(value=ast.Name(id="self"), attr=attribute):
                for node in place.owner.body if place.owner is not None else ():
                    if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                        yield from self._named(attribute.lstrip("_"), node, place)
            case _:
                return

    def _named(
        self, name: str, function: ast.FunctionDef, place: _Place
    ) -> Iterator[tuple[ast.expr, _Place]]:
        """What a name in a function is: given to it, assigned, or from a table."""
        yield from self._given(name, function, place)
        assigned = [n for n in ast.walk(function) if isinstance(n, ast.Assign)]
        for node in assigned:
            if any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                yield node.value, place
        yield from self._looped(name, function, place)

    def _looped(
        self, name: str, function: ast.FunctionDef, place: _Place
    ) -> Iterator[tuple[ast.expr, _Place]]:
        """What a loop over a table gives to a name."""
        for node in ast.walk(function):
            if isinstance(node, ast.For | ast.comprehension):
                names = [t.id for t in ast.walk(node.target) if isinstance(t, ast.Name)]
                if name in names:
                    yield from self._in_table(node.iter, names.index(name), place)

    def _given(
        self, name: str, function: ast.FunctionDef, place: _Place
    ) -> Iterator[tuple[ast.expr, _Place]]:
        taken = function.args
        positional = [a.arg for a in (*taken.posonlyargs, *taken.args) if a.arg != "self"]
        if name not in [*positional, *(a.arg for a in taken.kwonlyargs)]:
            return
        owner = place.owner.name if place.owner is not None else ""
        callee = owner if function.name == "__init__" else function.name
        keywords = zip(taken.kwonlyargs, taken.kw_defaults, strict=True)
        tail = positional[len(positional) - len(taken.defaults) :]
        defaults = {a.arg: d for a, d in keywords} | dict(
            zip(tail, taken.defaults, strict=True)
        )
        if default := defaults.get(name):
            yield default, place
        for other in self.places:
            hidden = callee.startswith("_") and other.file != place.file
            if _called(other.call) != callee or hidden:
                continue
            given = dict(zip(positional, other.call.args, strict=False))
            given |= {k.arg: k.value for k in other.call.keywords if k.arg}
            if name in given:
                yield given[name], other

    def _in_table(
        self, table: ast.expr, index: int, place: _Place
    ) -> Iterator[tuple[ast.expr, _Place]]:
        """The keys or values of a module's dict, or of pairs in the loop's own line."""
        if isinstance(table, ast.Attribute) and table.attr == "warnings":
            yield ast.Attribute(value=table, attr="code"), place  # stand where they were added
            return
        if isinstance(table, ast.Tuple):
            for pair in table.elts:
                yield (pair.elts[index] if isinstance(pair, ast.Tuple) else pair), place
            return
        named = ast.unparse(table).removesuffix(".items()")
        assigned = [n for n in self.trees[place.file].body if isinstance(n, ast.Assign)]
        for node in assigned:
            if ast.unparse(node.targets[0]) == named and isinstance(node.value, ast.Dict):
                sides = (node.value.keys, node.value.values)
                yield from ((e, place) for e in sides[index] if e is not None)


def _own_status(node: ast.ClassDef) -> str:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]).endswith(
            "exit_status"
        ):
            constant = isinstance(inner.value, ast.Constant)
            return ast.unparse(inner.value) if constant else "128 + signal"
    return ""


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def main() -> None:
    """Write the page."""
    sites, faults = read(sources())
    if faults:
        raise SystemExit("\n".join(faults))
    DOCUMENT.write_text(page(sites), encoding="utf-8")


if __name__ == "__main__":
    main()
