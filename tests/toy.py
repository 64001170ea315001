"""A target for tests: a shell program whose cost is a number in a file.

Its verdicts do not depend on noise.
"""

from collections.abc import Mapping
from pathlib import Path

TARGET = """
name = "toy"
[source]
path = "src"
[scope]
editable = ["*.txt", "*.sh"]
[artifact]
paths = ["*.txt", "*.sh"]
[stages.build]
run = "sh -n main.sh"
timeout = 10
[stages.test]
run = "sh main.sh | grep -q '^answer=42$'"
timeout = 2
[stages.workload]
run = "sh main.sh"
timeout = 10
[metrics.cost]
role = "primary"
[metrics.size]
role = "guard"
margin = 0.1
[metrics.answer]
kind = "digest"
[workloads.main]
[workloads.other]
guard = true
"""

MAIN = """\
# the program
echo "cost=$(cat cost.txt)"
echo "size=$(cat size.txt)"
echo answer=42
"""


def write_target(
    folder: Path, patches: Mapping[str, str] | None = None, text: str = TARGET
) -> Path:
    """A toy target in `folder`; patches are given as name to text."""
    source = folder / "src"
    source.mkdir(parents=True)
    (folder / "target.toml").write_text(text)
    (source / "main.sh").write_text(MAIN)
    (source / "cost.txt").write_text("100\n")
    (source / "size.txt").write_text("10\n")
    (folder / "patches").mkdir()
    for name, patch in (patches or {}).items():
        (folder / "patches" / f"{name}.patch").write_text(patch)
    return folder


def replace_line(file: str, old: str, new: str, line: int = 1) -> str:
    """A patch without context: one line of a file becomes another."""
    return f"--- a/{file}\n+++ b/{file}\n@@ -{line} +{line} @@\n-{old}\n+{new}\n"


def cost(new: int, old: int = 100) -> str:
    return replace_line("cost.txt", str(old), str(new))


POOL = {
    "01-win": "Hypothesis: fewer steps\n\n" + cost(80),
    "02-does-not-apply": cost(70),
    "03-larger": replace_line("size.txt", "10", "20"),
    "04-comment": replace_line("main.sh", "# the program", "# the same program"),
    "05-syntax": replace_line("main.sh", "# the program", "if"),
    "06-wrong": replace_line("main.sh", "echo answer=42", "echo answer=41", 4),
    "07-hangs": replace_line("main.sh", "# the program", "sleep 600"),
    "08-outside": "--- /dev/null\n+++ b/Makefile\n@@ -0,0 +1 @@\n+all:\n",
    "09-escape": "--- /dev/null\n+++ b/../x.txt\n@@ -0,0 +1 @@\n+x\n",
    "10-no-patch": "words\n",
    "11-silent": replace_line("main.sh", 'echo "size=$(cat size.txt)"', "true", 3),
    "12-zero": cost(0, 80),
    "13-second-win": cost(60, 80),
    "14-worse": cost(90, 60),
    "15-again": cost(90, 60) + "\n",
}
"""What each of these comes to is in `EXPECTED`."""

EXPECTED = {
    "01-win": "keep",
    "02-does-not-apply": "does_not_apply",
    "03-larger": "discard_no_effect",
    "04-comment": "discard_no_effect",
    "05-syntax": "invalid",
    "06-wrong": "invalid",
    "07-hangs": "invalid",
    "08-outside": "out_of_scope",
    "09-escape": "out_of_scope",
    "10-no-patch": "malformed",
    "11-silent": "invalid",
    "12-zero": "invalid",
    "13-second-win": "keep",
    "14-worse": "discard_regression",
}
