"""aiopt as a library: run a campaign, read its log, and ask what other weights would have decided.

python examples/library.py [FOLDER]

The target is made here, so that this takes seconds: a program that counts to a number, and three
patches. Everything that it prints comes from the log, and would be the same tomorrow.
"""

import sys
import tempfile
from pathlib import Path

import aiopt
from aiopt.events import RunMeasured
from aiopt.export import export
from aiopt.log import Log

TARGET = """
name = "counter"
[source]
path = "src"
[scope]
editable = ["*.sh"]
[stages.test]
run = "sh main.sh | grep -q ^sum="
[stages.workload]
run = "sh main.sh"
[metrics.steps]
role = "primary"
[metrics.memory]
role = "primary"
[metrics.sum]
kind = "digest"
[workloads.main]
"""
MAIN = "steps=100\nmemory=50\necho sum=4950\necho steps=$steps\necho memory=$memory\n"
PATCHES = {
    "fewer-steps": ("steps=100", "steps=80"),
    "wrong-answer": ("echo sum=4950", "echo sum=0"),
    "no-difference": ("memory=50", "memory=50 # bytes"),
}


def make_target(folder: Path) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "patches").mkdir()
    (folder / "target.toml").write_text(TARGET)
    (folder / "src" / "main.sh").write_text(MAIN)
    lines = MAIN.splitlines()
    for name, (old, new) in PATCHES.items():
        place = lines.index(old) + 1
        header = f"Hypothesis: {name}\n\n--- a/main.sh\n+++ b/main.sh\n"
        text = f"{header}@@ -{place} +{place} @@\n-{old}\n+{new}\n"
        (folder / "patches" / f"{name}.patch").write_text(text)
    return folder


def main(home: Path) -> None:
    target = make_target(home / "targets" / "counter")
    # these costs have no noise, so little calibration is enough, and a busy machine does not matter
    void = {"steal": 0.0, "psi": 0.0, "throttle": False}
    settings = aiopt.Settings(rule_options={"ncal": 10, "warmup": 0, "void": void})

    result = aiopt.run(target, results=home / "results", settings=settings)
    for row in result.calibration.rows if result.calibration else ():
        print(f"provable of {row.metric}: {row.mei_eff_percent:.1f} %, {row.n1} + {row.n2} pairs")
    print(f"kept: {', '.join(result.kept)}")
    for row in result.candidates:
        print(f"{row.patch}: {row.status}")

    log = home / "results" / "counter" / "events.db"
    with Log.open(log, readonly=True) as opened:
        runs = [r.event for r in opened.read() if isinstance(r.event, RunMeasured)]
    print(f"runs: {len(runs)}, of the candidate: {sum(run.arm == 'B' for run in runs)}")

    rescored = aiopt.rescore(log, weights={"steps": 0.2, "memory": 0.8})
    best = rescored.ranking[0]
    print(f"first with other weights: {best.patch}, log cost ratio {best.total:+.3f}")
    print(f"flips: {[decision.patch for decision in rescored.flips]}")
    other = aiopt.rescore(log, rule="signed-rank", changes={"alpha": 0.05})
    print(f"by {other.rule}: {[decision.replayed for decision in other.decisions]}")

    print(f"folders: {len(export(log).folders)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
