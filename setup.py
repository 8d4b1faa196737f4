"""Builds the package and its C++ extension `noisebook._C`; all other metadata is in pyproject.toml."""

import re
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "engine/noisebook/runtime/__init__.py").read_text())[1]

setup(
    version=VERSION,
    package_dir={"noisebook": "engine/noisebook", "noisebook_kernels": "kernels/noisebook_kernels"},
    packages=[*find_packages("engine"), *find_packages("kernels")],
    package_data={
        "noisebook": ["py.typed", "_C.pyi", "spec/presets.json", "backbones/weights/*", "report/style.css"],
        "noisebook_kernels": ["py.typed", "tuned.json"],
    },
    ext_modules=[
        Pybind11Extension(
            "noisebook._C",
            sorted(str(p.relative_to(HERE)) for p in (HERE / "csrc").glob("*.cpp")),
            depends=sorted(str(p.relative_to(HERE)) for p in (HERE / "csrc").glob("*.h")),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=["-O3", "-fno-math-errno", "-ffp-contract=off"],
            optional=True,  # without a compiler the torch definition serves, thousands of times slower, and says so
        )
    ],
)
