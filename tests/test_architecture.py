"""Imports point down, in no circle, and private names of transformers stay in one file."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top down: a layer may import its own and those that stand after it.
LAYERS = (
    ("cli",),
    ("demo",),
    ("evaluation",),
    ("highlights",),
    ("lab",),
    ("specs",),
    ("setting_text",),
    ("spec_text",),
    ("checkpoints",),
    ("decoders",),
    ("engine",),
    ("chat",),
    ("vision",),
    ("attention",),
    ("logits",),
    ("hub",),
    ("serialization",),
    ("codegen", "docstrings", "json_text", "messages", "model_protocol", "settings", "weak_lru"),
    ("compat",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Modules of transformers whose names are public and documented.
PUBLIC = {"transformers", "transformers.generation", "transformers.utils"}


def library() -> list[Path]:
    """The modules that are installed."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in names.split() if (ROOT / name).exists()]
    return [path for path in paths if (path.parts[0].removesuffix(".py")) in RANK]


MODULES = library()
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in MODULES}


def imported(tree: ast.AST) -> set[str]:
    """Full names of what a module imports, those inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> str | None:
    """The layer of a full name of ours; None for what others wrote."""
    first, _, rest = name.partition(".")
    return rest.split(".")[0] if first == "sightline" and rest else None


def test_every_module_stands_in_a_layer():
    top = {path.name.removesuffix(".py") for path in ROOT.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert top | packages == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
    if path.name == "__main__.py":  # starts the command line
        return
    own = path.parts[0].removesuffix(".py")
    named = {layer(name) for name in imported(TREES[path])} - {None, own}
    upward = sorted(name for name in named & set(RANK) if RANK[name] < RANK[own])
    assert not upward, f"{path} imports {upward}, which stand above it"


def test_no_circle_of_modules():
    """Of imports when a module is loaded; what a function imports may come later."""
    names = {".".join(("sightline", *path.with_suffix("").parts)): path for path in MODULES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}

    def loaded(path: Path) -> set[str]:
        body = [node for node in TREES[path].body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = imported(ast.Module(body, []))
        both = found | {name.rpartition(".")[0] for name in found}
        return both & set(names)

    edges = {name: loaded(path) - {name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def private(tree: ast.AST) -> set[str]:
    """Names with one underscore that a module reads of something else than `self` or `cls`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            of_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            of_parent = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
            if not (of_own or of_parent or node.attr.startswith("__")):
                found.add(node.attr)
    return found


# Defined by the library itself, on its own classes and modules.
OWN = {
    name.name
    for tree in TREES.values()
    for name in ast.walk(tree)
    if isinstance(name, ast.FunctionDef | ast.ClassDef)
} | {
    node.attr
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
}
# Public names of others that begin with an underscore.
OF_OTHERS = {"_asdict", "_exit", "_version"}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "compat.py"], ids=str)
def test_private_names_of_transformers_stand_in_one_file(path):
    modules = {
        node.module
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
    }
    assert modules <= PUBLIC, f"{path} imports {modules - PUBLIC}: take it from sightline.compat"
    foreign = private(TREES[path]) - OWN - OF_OTHERS
    assert not foreign, f"{path} reads {foreign}: take it from sightline.compat"
