"""Builds the C++ extension `noisebook._C` and reads the version; all other metadata is in pyproject.toml."""

import re
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

HERE = Path(__file__).parent
# as text: to import the package would need its dependencies
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "engine/noisebook/runtime/__init__.py").read_text(), re.MULTILINE)[1]

setup(
    version=VERSION,
    ext_modules=[
        Pybind11Extension(
            "noisebook._C",
            sorted(str(p.relative_to(HERE)) for p in (HERE / "csrc").glob("*.cpp")),
            depends=sorted(str(p.relative_to(HERE)) for p in (HERE / "csrc").glob("*.h")),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off"],
            optional=True,  # without a compiler the torch definition serves, many times slower, and says so
        )
    ],
)
