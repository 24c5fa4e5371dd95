"""What importing pimcal costs, what it offers, and that its modules import downwards only."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pimcal

PACKAGE = Path(pimcal.__file__).parent
ROOT = PACKAGE.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
OUTSIDE = {path.name.removesuffix(".py") for folder in ("backends", "plugins") for path in (ROOT / folder).iterdir()}


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def at_module_level(tree: ast.Module) -> list[ast.stmt]:
    """All statements that run on import."""
    found: list[ast.stmt] = []
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if is_for_type_checkers(node) or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            todo.append(node)
            if isinstance(node, ast.stmt):
                found.append(node)
    return found


def imported(nodes: list[ast.stmt]) -> set[str]:
    """The modules that import statements name; of `from pimcal import x` the module pimcal.x where there is one."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else module for name in inner}
    return names


def graph() -> dict[str, set[str]]:
    trees = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
    return {name: imported(at_module_level(tree)) & MODULES.keys() for name, tree in trees.items()}


def test_modules_import_one_another_without_circles() -> None:
    try:
        order = list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert order.index("pimcal.errors") < order.index("pimcal.registry") < order.index("pimcal.cli.app")


def test_a_circle_would_be_found() -> None:
    circle = ast.parse(
        "from pimcal import registry\nif True:\n    import pimcal.errors\ndef f():\n    import pimcal.plain"
    )
    assert imported(at_module_level(circle)) == {"pimcal.registry", "pimcal.errors"}


def test_no_module_of_the_core_imports_a_backend_or_a_plugin_anywhere() -> None:
    assert {"pimcal_gaussian", "pimcal_demo"} <= OUTSIDE
    for name, path in MODULES.items():
        statements = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
        named = {module.partition(".")[0] for module in imported(statements)}
        assert not named & OUTSIDE, f"{name} imports {named & OUTSIDE}"


def test_only_the_command_line_imports_the_command_line() -> None:
    below = {name for name in MODULES if not name.startswith(("pimcal.cli", "pimcal.__main__"))}
    for name in below:
        statements = [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.stmt)]
        assert not any(module.startswith("pimcal.cli") for module in imported(statements)), name


@pytest.mark.parametrize(
    "module", ["pimcal", "pimcal.profile", "pimcal.registry", "pimcal.cli.app", "pimcal.errors", "pimcal.events"]
)
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    script = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_resolves_and_is_listed() -> None:
    for name in pimcal.__all__:
        assert getattr(pimcal, name) is not None
    assert dir(pimcal) == sorted(pimcal.__all__)
    assert len(set(pimcal.__all__)) == len(pimcal.__all__)


def test_public_names_are_the_objects_that_type_checkers_see() -> None:
    tree = ast.parse(Path(pimcal.__file__).read_text())
    block = next(node for node in tree.body if is_for_type_checkers(node))
    seen = {
        alias.asname: node.module
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: pimcal._HOMES[name] for name in pimcal._HOMES} == seen


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pimcal' has no attribute 'nothing'"):
        _ = pimcal.nothing
