"""Runs the GPU tests: `python -m gpu [--list] [PART OF A NAME]...` in the folder above.

Ends with a line that says how many passed, failed and were skipped; fails if none ran, or if any
was skipped because there is no GPU. Stops when the GPU is lost, and ends with the stacks of all
threads when a test hangs.
"""

from __future__ import annotations

import faulthandler
import sys
import time
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from gpu import common

#: Seconds for one test, the opening of its class's store included.
LIMIT = common.size(180, 1_800)


class Result(unittest.TextTestResult):
    """Counts tests rather than sub-tests, and notices a GPU that does not work any more."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self.passed = 0
        self.times: list[tuple[float, str]] = []
        self._started = 0.0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        self._started = time.monotonic()
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self.times.append((time.monotonic() - self._started, test.id()))
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            self.stream.writeln(f"The GPU is lost after {test.id()}: {error}")
            self.errors.append((test, "The GPU is lost; the remaining tests were not run."))
            self.stop()

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addSuccess(test)
        self.passed += 1

    @property
    def failed(self) -> int:
        broken = [test for test, _ in (*self.failures, *self.errors)]
        return len({getattr(test, "test_case", test).id() for test in broken})


def tests_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from tests_of(test)
        else:
            yield test


def chosen_tests(patterns: list[str]) -> list[unittest.TestCase]:
    """Returns the tests whose name contains one of the patterns; all if there are none."""
    folder = Path(__file__).resolve().parent
    found = unittest.defaultTestLoader.discover(str(folder), top_level_dir=str(folder.parent))

    def is_chosen(name: str) -> bool:
        # What could not be imported has such a name; it is always run, and fails.
        broken = name.startswith("unittest.loader.")
        return broken or not patterns or any(pattern in name for pattern in patterns)

    return [test for test in tests_of(found) if is_chosen(test.id())]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--list"]:
        for test in chosen_tests(arguments[1:]):
            print(test.id())
        return 0
    if not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} sees no CUDA device here")
        return 1
    # TorchScript is deprecated, and is what most saved models are.
    warnings.filterwarnings("ignore", message=r".*torch\.jit\.")
    chosen = chosen_tests(arguments)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    started = time.monotonic()
    runner = unittest.TextTestRunner(stream=sys.stdout, resultclass=Result, verbosity=2)
    result = runner.run(unittest.TestSuite(chosen))
    faulthandler.cancel_dump_traceback_later()
    common.hps_torch.close_all()

    print("slowest:")
    for seconds, name in sorted(result.times, reverse=True)[:8]:
        print(f"  {seconds:6.1f} s  {name}")
    print(f"{time.monotonic() - started:.0f} s on {torch.cuda.get_device_name(common.DEVICE)}")
    without_gpu = any(reason == "no GPU" for _, reason in result.skipped)
    print(f"{result.passed} passed, {result.failed} failed, {len(result.skipped)} skipped")
    return 0 if result.passed and not result.failed and not without_gpu else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
