"""What of torch this package uses, and whether a wheel of torch has it: read, never imported.

    pip download --no-deps --platform macosx_11_0_arm64 --only-binary :all: torch==2.6.0
    python -m tests.torch_floor torch-2.6.0-*.whl

writes `LISTED` anew, the names that the wheel has, and prints those that it has not. On Linux the
oldest torch allowed comes with CUDA and gigabytes of packages; for macOS it has 67 MB, and
the same Python.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

FLOOR = "2.6"  # whose wheel was read
LISTED = Path(__file__).with_name("torch_floor.txt")
_COMMON = Path(__file__).parents[1] / "common"
_BUILT_IN = {  # where names are told of that are not Python's
    "torch": ("_C/__init__.pyi", "_C/_VariableFunctions.pyi"),
    "torch.nn.functional": ("_C/_VariableFunctions.pyi",),
    "torch.Tensor": ("_C/__init__.pyi", "_tensor.py"),
}


def used(package: Path = _COMMON) -> set[str]:
    """Names such as torch.load, their keywords (torch.load weights_only), and tensors' methods."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        if not path.name.startswith("triton_kernels"):  # that is Triton's language
            names |= set(_used_in(ast.parse(path.read_text())))
    return names


def _used_in(tree: ast.AST) -> Iterator[str]:
    alias = {"torch": "torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            for name in node.names:
                alias[name.asname or name.name] = f"{node.module}.{name.name}"
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("torch.") and name.asname:
                    alias[name.asname] = name.name
    yield from (name for name in alias.values() if name != "torch")

    def qualified(node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return alias.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := qualified(node.value)) is not None:
            return f"{owner}.{node.attr}"
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            name = qualified(node)
            if name is not None and not name.startswith("torch.ops."):
                yield name
            elif name is None and hasattr(torch.Tensor, node.attr):
                yield f"torch.Tensor.{node.attr}"
        elif isinstance(node, ast.Call) and (name := qualified(node.func)) is not None:
            yield from (f"{name} {keyword.arg}" for keyword in node.keywords if keyword.arg)


class Wheel:
    """The names in a wheel's Python files and stubs."""

    def __init__(self, path: str | Path) -> None:
        self.archive = zipfile.ZipFile(path)
        self.files = set(self.archive.namelist())
        self.nodes: dict[str, list[ast.AST]] = {}

    def has(self, entry: str) -> bool:
        name, _, keyword = entry.partition(" ")
        found = self._find(name, set())
        if not keyword:
            return bool(found) or bool(self._files(name))
        return any(_takes(node, keyword) for node in found)

    def _files(self, module: str) -> list[str]:
        stem = module.replace(".", "/")
        own = [f"{stem}{end}" for end in (".py", ".pyi", "/__init__.py", "/__init__.pyi")]
        own += [f"torch/{path}" for path in _BUILT_IN.get(module, ())]
        return [path for path in own if path in self.files]

    def _find(self, name: str, seen: set[str]) -> list[ast.AST]:
        """What defines a name, in its module or its class or where these import it from."""
        if name in seen:
            return []
        seen.add(name)
        owner, _, last = name.rpartition(".")
        found = []
        for path in self._files(owner):
            if path not in self.nodes:
                self.nodes[path] = list(ast.walk(ast.parse(self.archive.read(path))))
            for node in self.nodes[path]:
                if _defines(node, last):
                    found.append(node)
                elif isinstance(node, ast.ImportFrom):
                    package = path.split("/")[: -node.level or None] if node.level else []
                    module = ".".join([*package, *([node.module] if node.module else [])])
                    for alias in node.names:
                        if alias.name == last and not self._files(module):  # of Python's own
                            found.append(node)
                        elif (alias.asname or alias.name) in (last, "*"):
                            target = last if alias.name == "*" else alias.name
                            found += self._find(f"{module}.{target}", seen)
        if not found and "." in owner:
            bodies = (x for x in self._find(owner, seen) if isinstance(x, ast.ClassDef))
            found = [x for body in bodies for x in ast.walk(body) if _defines(x, last)]
        return found


def _defines(node: ast.AST, name: str) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name == name
    if isinstance(node, ast.Attribute):  # Dim.AUTO = ...
        return node.attr == name and isinstance(node.ctx, ast.Store)
    return isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)


def _takes(node: ast.AST, keyword: str) -> bool:
    if isinstance(node, ast.ClassDef):
        own = [x for x in node.body if getattr(x, "name", "") == "__init__"]
        return not own or any(_takes(x, keyword) for x in own)  # inherited ones are not looked up
    if not isinstance(node, ast.FunctionDef):
        return False
    given = node.args
    return keyword in {x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


def main() -> None:
    wheel = Wheel(sys.argv[1])
    there = {name: wheel.has(name) for name in sorted(used())}
    LISTED.write_text("".join(f"{name}\n" for name, found in there.items() if found))
    sys.stdout.writelines(f"{name}\n" for name, found in there.items() if not found)


if __name__ == "__main__":
    main()
