"""One machine a module. It is booted with MarketPrism installed and the exchanges simulated, but nothing started."""

from collections.abc import Iterator

import pytest
from machine import CannotRunError, Machine

JOURNAL_LINES = 150


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine of this module."""
    try:
        machine = Machine(tmp_path_factory.mktemp("vm"))
    except CannotRunError as e:
        pytest.skip(str(e))
    yield machine
    machine.power_off()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The machine's journal stands below a failure."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("vm")
    if report.failed and isinstance(machine, Machine):
        command = (
            f"systemctl list-units 'marketprism*' --all --no-pager; journalctl --no-pager -n {JOURNAL_LINES}"
        )
        report.sections.append(("journal of the machine", machine.attempt(command).text))
    return report
