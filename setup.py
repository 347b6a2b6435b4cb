"""Build the C++ library with the package, and add the bundles to it; the rest is pyproject.toml.

The library is built where a compiler is at hand. Nothing is lost where it cannot be: the package
then compiles it on first use (see common/ops/native.py), or runs without.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

path = Path(__file__).parent / "common" / "ops" / "native.py"
spec = importlib.util.spec_from_file_location("native", path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class BuildLibrary(build_ext):
    """A plain shared library, compiled as on first use: Python's own flags make other code."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            native.compile_with_any(output)
        except native.BuildError as error:
            raise CompileError(str(error)) from error


class BuildWithBundles(build_py):
    """The package, and within it the bundles and their index, as common/collection.py finds them.

    In a checkout they are beside the package, and so they stay where it is installed as editable.
    Weights are among them where the metadata tells of them: others are somebody's own.
    """

    def bundled(self) -> dict[str, str]:
        """Where each file goes, and where it is."""
        parts = ["LICENSE", "configs/**/*", "docs/**/*"]
        found = [file for part in parts for file in Path("bundles").glob(f"*/{part}")]
        for metadata in Path("bundles").glob("*/configs/metadata.json"):
            told = json.loads(metadata.read_text(encoding="utf-8")).get("weights", {})
            models = metadata.parents[1] / "models"
            weights = models / "model.pt"
            if weights.is_file() and told.get("models/model.pt") == sha256(weights):
                found += [weights, models / "settings.json"]
                found += models.glob("reference.*")
        files = [str(x) for x in sorted(found) if x.is_file() and not x.name.startswith(".")]
        return {
            str(Path(self.build_lib, "common", file)): file
            for file in ("model_zoo_index.json", *files)
        }

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for target, source in self.bundled().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        ours = [] if self.editable_mode else self.bundled()
        return [*super().get_outputs(include_bytecode), *ours]

    def get_source_files(self) -> list[str]:
        """What a source distribution has."""
        return [*super().get_source_files(), *self.bundled().values()]


sources = sorted(str(path) for path in Path("common/ops/csrc").iterdir())
library = Extension("common.ops._selective_scan", sources, optional=True)
setup(ext_modules=[library], cmdclass={"build_ext": BuildLibrary, "build_py": BuildWithBundles})
