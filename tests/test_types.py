"""What callers are told of arguments: every parameter of a public function or method has a type or a word of explanation, and the package says so."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "diffnb"


def functions(path):
    """Public functions and methods of a module: (class or None, node)."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield None, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (method.name == "__init__" or not method.name.startswith("_")):
                    yield node.name, method


def parameters(path):
    """(class, function, parameter, whether it has an annotation or a comment on its line) of everything public."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for owner, node in functions(path):
        given = node.args
        for one in [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]:
            if one.arg not in ("self", "cls"):
                yield owner, node.name, one.arg, one.annotation is not None or "#" in lines[one.lineno - 1]


def untyped(path):
    """Names of the public functions of a module, outside of classes, with a parameter without an annotation."""
    found = set()
    for owner, node in functions(path):
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        if owner is None and any(one.annotation is None for one in every):
            found.add(node.name)
    return found


def test_parameters_are_typed_or_explained():
    """A method that takes the place of another is explained where the first one is, under the same names."""
    modules = {
        path.relative_to(PACKAGE).as_posix(): list(parameters(path))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in ("__init__.py", "_modidx.py")
    }
    explained = {row[1:3] for rows in modules.values() for row in rows if row[0] and row[1] != "__init__" and row[3]}
    lacking = [(name, *row[:3]) for name, rows in modules.items() for row in rows if not row[3] and row[1:3] not in explained]
    assert sum(map(len, modules.values())) > 1000
    assert not lacking


def test_functions_are_typed():
    """Every parameter of a public function, outside of classes, has an annotation, for those who check their own calls."""
    found = {path.relative_to(PACKAGE).as_posix(): untyped(path) for path in sorted(PACKAGE.rglob("*.py"))}
    assert not {name: names for name, names in found.items() if names}


def test_the_package_says_that_it_is_typed():
    """What checkers of callers look for."""
    assert (PACKAGE / "py.typed").is_file()
