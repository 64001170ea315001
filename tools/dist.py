"""Build wheel and sdist in a folder, with the setuptools that is here and without a network."""

import io
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

from setuptools import build_meta


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sys.argv = ["setup.py"]
    for build in (build_meta.build_wheel, build_meta.build_sdist):
        with redirect_stdout(io.StringIO()):
            name = build(str(folder))
        print(folder / name)
    shutil.rmtree("build", ignore_errors=True)


main()
