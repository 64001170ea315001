"""Run all checks against SOURCE_DIR; the exit code says whether they passed."""

import sys
import unittest
from pathlib import Path


def main() -> int:
    folder = str(Path(__file__).parent)
    suite = unittest.defaultTestLoader.discover(folder, pattern="check_*.py", top_level_dir=folder)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=1, failfast=True).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
