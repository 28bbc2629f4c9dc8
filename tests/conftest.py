"""Helpers of tests stand beside them and are imported by their plain names; `chaos` and `benchmarks` from the root."""

import sys
from pathlib import Path

import pytest

for folder in ("..", "", "worker", "simulator", "vm", "storage"):
    sys.path.insert(0, str(Path(__file__).parent / folder))

# Minutes each. First, so that no processor is idle at the end; the package and the machine's image are made at once.
LONGEST = (
    "test_deb",
    "test_vm",
    "test_deb_vm",
    "test_vm_storage",
    "test_vm_memory",
    "test_vm_control",
    "test_image",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first."""

    def rank(item: pytest.Item) -> int:
        return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)

    items.sort(key=rank)
