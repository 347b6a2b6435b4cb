"""Build the C++ library with the package, where a compiler is at hand; the rest is pyproject.toml.

Nothing is lost where it cannot be built: the package then compiles it on first use (see
common/ops/native.py), or runs without.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

path = Path(__file__).parent / "common" / "ops" / "native.py"
spec = importlib.util.spec_from_file_location("native", path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


class BuildLibrary(build_ext):
    """A plain shared library, so its name does not depend on the version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"


library = Extension(
    "common.ops._selective_scan",
    ["common/ops/csrc/selective_scan.cpp"],
    depends=[str(path) for path in sorted(Path("common/ops/csrc").glob("*.h"))],
    define_macros=[("SOURCE_HASH", f'"{native.source_hash()}"')],
    extra_compile_args=list(native.FLAGS),
    extra_link_args=["-pthread"],
    language="c++",
    optional=True,
)
setup(ext_modules=[library], cmdclass={"build_ext": BuildLibrary})
