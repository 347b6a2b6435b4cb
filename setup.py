"""Build the C++ library with the package, where a compiler is at hand; the rest is pyproject.toml.

Nothing is lost where it cannot be built: the package then compiles it on first use (see
common/ops/native.py), or runs without.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

path = Path(__file__).parent / "common" / "ops" / "native.py"
spec = importlib.util.spec_from_file_location("native", path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


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


sources = sorted(str(path) for path in Path("common/ops/csrc").iterdir())
library = Extension("common.ops._selective_scan", sources, optional=True)
setup(ext_modules=[library], cmdclass={"build_ext": BuildLibrary})
