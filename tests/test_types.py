"""What callers are told of arguments: every parameter of a public function or method has a type or a word of explanation, and the package says so."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "diffnb"
# Parameters without either, by module: a table that only shrinks. Setters and methods in the place of fastai's, torch's and typer's take what those
# take; stand-ins of components share the signature of their base class; the worker's are its own protocol.
WITHOUT = {
    "apps/image_commands.py": 3,
    "apps/shell.py": 4,
    "files/operations.py": 5,
    "files/sandbox.py": 11,
    "files/worker.py": 8,
    "guidance/posterior.py": 4,
    "model/exporting.py": 2,
    "model/facts.py": 3,
    "training/distributed.py": 1,
    "training/interruptions.py": 6,
    "training/learner.py": 4,
    "training/plans.py": 1,
    "training/steps.py": 2,
}


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
    lacking = {name: [row[:3] for row in rows if not row[3] and row[1:3] not in explained] for name, rows in modules.items()}
    methods = {name: rows for name, rows in lacking.items() if rows}
    assert sum(map(len, modules.values())) > 1000
    assert {name: len(rows) for name, rows in methods.items()} == WITHOUT, methods


# Public functions with a parameter that has a word of explanation and no type, by module: a table that only shrinks.
UNTYPED = {
    "apps/compare_command.py": 2,
    "apps/compare_runs.py": 1,
    "apps/comparisons.py": 4,
    "apps/workshop.py": 1,
    "apps/workshop_pages.py": 1,
    "data/pairs.py": 1,
    "model/pipelines.py": 1,
    "model/trained.py": 4,
}


def test_functions_are_typed():
    """Every parameter of a public function, outside of classes, has an annotation, for those who check their own calls."""
    found = {path.relative_to(PACKAGE).as_posix(): untyped(path) for path in sorted(PACKAGE.rglob("*.py"))}
    assert {name: len(functions) for name, functions in found.items() if functions} == UNTYPED, found


def test_the_package_says_that_it_is_typed():
    """What checkers of callers look for."""
    assert (PACKAGE / "py.typed").is_file()
