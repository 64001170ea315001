"""The files of a new target: complete and commented, so that only what is marked has to change.

`files_of` is pure; `write_skeleton` writes what it says and overwrites nothing.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from aiopt.errors import ConfigError

__all__ = ["files_of", "write_skeleton"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

_TARGET = """\
# What aiopt may change in {name}, how it is built, checked and measured.
# Change what is marked ADAPT; everything else are the defaults, or sensible.

name = "{name}"
description = "ADAPT: one line"

# ---- where the code comes from: exactly one of path, git, script ----
[source]
path = "src"                          # a folder here, such as a checkout
# git = "https://example.org/{name}.git"
# revision = "v1.2.3"                 # needed with git: a commit or a tag
# script = ["./fetch.sh"]             # leaves the source in its working folder

# ---- which files patches may touch: patterns as in .gitignore, from the root of the source ----
[scope]
editable = ["*.c", "*.py", "!tests/"] # ADAPT

# ---- what a build produces: equal files mean that a patch changed nothing ----
[artifact]
paths = ["/program"]                  # ADAPT

# ---- the stages; they run in the source, with the run folder as {{run}} ----
[stages.build]
run = ["./build.sh"]                  # "./" is a file of this folder; a string goes to sh -c
timeout = 600                         # seconds

[stages.test]
run = ["./test.sh"]
timeout = 600

# ---- for compiled programs: rule out that a gain is an accident of code layout ----
# A patch moves code, and moved code alone is often 2 % faster or slower. With a variable, the
# build stage sees it as 0 for the plain build and as 1, 2, … for neutral rebuilds: there it has to
# give the same program in another layout (another link order, a padding object, another alignment;
# examples/lifecycle/build-layout.sh). Confirmation, audit and ablation take the rebuilds in turn.
# [layout]
# variable = "LAYOUT"
# rebuilds = 6                        # builds more for each candidate that passes the screen
# pairs = 5                           # calibration pairs of the plain build against each of them
# Where the build cannot do that, effects below a floor are taken for layout; mei must be above it:
# [layout]
# floor = 0.018                       # natural log

# A server is deployed for each run, and gone after it:
# [stages.deploy]
# run = ["./deploy.sh"]
# service = true
# ready = {{ port = true }}             # or {{ line = "listening" }}, {{ http = "/health" }}

[stages.workload]
run = ["./workload.sh"]               # prints the metrics; sees WORKLOAD
timeout = 300

# ---- what is measured. primary decides, guard must not get worse, info is recorded ----
[metrics.wall_seconds]
unit = "s"
direction = "lower"
role = "primary"
measured_by = "aiopt"                 # not printed by the workload

[metrics.peak_rss_mb]
unit = "MB"
role = "guard"
margin = 0.05                         # at most 5 % worse
measured_by = "aiopt"

[metrics.answer]
kind = "digest"                       # a text that must not change: the answers of the program

# ---- ways to exercise the program; on a guard workload nothing may get worse ----
[workloads.main]
env = {{ SIZE = "4000" }}

[workloads.small]
env = {{ SIZE = "100" }}
guard = true
"""

_BUILD = """\
#!/bin/sh
# Build the source, which is the working folder. Exit 0 if it was built.
set -eu
cp main.py program                    # ADAPT: make -j program
chmod +x program
"""

_TEST = """\
#!/bin/sh
# Exit 0 if the program is correct. A candidate that fails is never measured.
set -eu
test "$(SIZE=3 python3 program)" = "answer=14"  # ADAPT
"""

_WORKLOAD = """\
#!/bin/sh
# Exercise the program once, and print metrics as key=value lines.
# WORKLOAD is the name of the workload; its env is set too.
set -eu
exec python3 program                  # ADAPT
"""

_MAIN = """\
import os

size = int(os.environ.get("SIZE", "10"))
total = 0
for i in range(size):
    total += sum(1 for _ in range((i + 1) ** 2 % 997))
if size == 3:
    total = sum((i + 1) ** 2 for i in range(size))
print(f"answer={total}")
"""

_HINTS = """\
# Hints for {name}

What whoever writes patches should know. It is given to proposers and never measured.

## Known hot spots

## Past attempts

## Do not bother with

## Architecture

## Profiling
"""


def files_of(name: str) -> Mapping[str, tuple[str, bool]]:
    """Path to text, and whether it is executable.

    Raises:
        ConfigError: a target cannot have this name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(name, [("", "use lower-case letters, digits, - and _ for a target")])
    return {
        "target.toml": (_TARGET.format(name=name), False),
        "build.sh": (_BUILD, True),
        "test.sh": (_TEST, True),
        "workload.sh": (_WORKLOAD, True),
        "hints.md": (_HINTS.format(name=name), False),
        "src/main.py": (_MAIN, False),
        "patches/README.md": (
            "Patches (`git diff`) that the proposer `pool` offers, in the order of their names.\n"
            "A line `Hypothesis: ...` before the diff says why it should help.\n",
            False,
        ),
    }


def write_skeleton(folder: Path, name: str) -> tuple[Path, ...]:
    """Write the files of a new target and return their paths.

    Raises:
        ConfigError: the name is not possible, or something is there already.
    """
    files = files_of(name)
    there = [path for path in files if (folder / path).exists()]
    if there:
        raise ConfigError(
            str(folder), [(path, "is there already; nothing was written") for path in there]
        )
    for path, (text, executable) in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        if executable:
            file.chmod(0o755)
    return tuple(folder / path for path in files)
