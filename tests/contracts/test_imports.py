"""Every module can be imported without a GPU, and the floors hold."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("launcher", "dlrm", "planner", "cluster")


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        names += [package, *(m.name for m in pkgutil.walk_packages(root.__path__, f"{package}."))]
    return [name for name in names if name != "launcher.__main__"]


@pytest.mark.parametrize("name", modules())
def test_module_imports(name: str) -> None:
    assert importlib.import_module(name).__doc__, f"{name} says nothing about itself"


def test_the_floors_hold(repository: Path) -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
