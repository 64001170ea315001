"""Measure what each patch of the pyserver pool does, beside the baseline and in the same minutes.

    python tests/targets/measure_pool.py --pairs 10                    # every patch that can run
    python tests/targets/measure_pool.py --pairs 10 17-page-key+18-page-revision
    python tests/targets/measure_pool.py --pairs 10 --against 06-reply-key 05-orders-join

A subject is one patch, or several joined by `+`. Within a pair a coin decides which side runs
first. A round measures each subject once, so that a slow minute of the machine falls on all alike.
Prints the median of ln(patched / baseline) in percent, and the 10th and 90th percentile of the
pairs (below ten pairs: the extremes). This is how the pool was checked; it is not a test, and
decides nothing.
"""

import argparse
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "targets" / "pyserver"
EXPECTED = Path(__file__).with_name("pyserver_expected.toml")
METRICS = ("cpu_seconds", "peak_rss_mb", "latency_p50_ms", "latency_p99_ms")


def make_tree(folder: Path, patches: list[str]) -> Path:
    """A built source tree with the patches applied in the given order."""
    ignore = shutil.ignore_patterns("__pycache__")
    tree = Path(shutil.copytree(TARGET / "src", folder, ignore=ignore))
    # Within another repository's folder `git apply` would silently skip every file.
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    for patch in patches:
        file = TARGET / "patches" / f"{patch}.patch"
        subprocess.run(["git", "apply", str(file)], cwd=tree, check=True)
    environment = {**os.environ, "PYTHON": sys.executable, "SOURCE_DIR": str(tree)}
    subprocess.run([str(TARGET / "build.sh")], cwd=tree, env=environment, check=True)
    return tree


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_once(tree: Path, run_dir: Path, workload: dict[str, str]) -> dict[str, str]:
    """deploy, workload, collect, as aiopt runs them; all `key=value` lines printed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        **workload,
        "PYTHON": sys.executable,
        "TARGET_DIR": str(TARGET),
        "SOURCE_DIR": str(tree),
        "RUN_DIR": str(run_dir),
        "SERVICE_HOST": "127.0.0.1",
        "SERVICE_PORT": str(free_port()),
    }
    printed: dict[str, str] = {}
    with subprocess.Popen(
        [str(TARGET / "deploy.sh")], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        try:
            for line in service.stdout:
                if line.startswith("ready"):
                    break
            else:
                raise RuntimeError(f"the server in {tree} ended before it was ready")
            environment["SERVICE_PID"] = str(service.pid)
            for script in ("workload.sh", "collect.sh"):
                output = subprocess.run(
                    [str(TARGET / script)],
                    cwd=tree,
                    env=environment,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                printed |= dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        finally:
            service.terminate()
            service.wait()
    return printed


def end_helpers() -> None:
    """End what 26-prefetch-helper has left behind; aiopt has to do this without knowing a name."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"pyserver-helper\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("subjects", nargs="*", help="patch names, joined by + where several")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--workload", default="mixed")
    parser.add_argument("--against", default="", help="patches in both sides, joined by +")
    parser.add_argument("--seed", type=int, default=1, help="of the coin")
    options = parser.parse_args()

    expected = tomllib.loads(EXPECTED.read_text())["patch"] if EXPECTED.exists() else {}
    measurable = [name for name, entry in expected.items() if entry.get("measurable", True)]
    subjects = options.subjects or [*measurable, "17-page-key+18-page-revision"]
    target = tomllib.loads((TARGET / "target.toml").read_text())
    workload = target["workloads"][options.workload]["env"]
    base_patches = [patch for patch in options.against.split("+") if patch]
    coin = random.Random(options.seed)
    ratios: dict[str, dict[str, list[float]]] = {s: {m: [] for m in METRICS} for s in subjects}
    digests: dict[str, set[str]] = {s: set() for s in subjects}
    walls: list[float] = []
    levels: dict[str, list[float]] = {m: [] for m in METRICS}

    with tempfile.TemporaryDirectory(prefix="pyserver-pool-") as name:
        root = Path(name)
        base = make_tree(root / "base", base_patches)
        trees = {
            subject: make_tree(root / f"tree-{number}", [*base_patches, *subject.split("+")])
            for number, subject in enumerate(subjects)
        }
        for _ in range(options.pairs):
            for subject in subjects:
                sides = [("base", base), ("patched", trees[subject])]
                if coin.random() < 0.5:
                    sides.reverse()
                results = {}
                for side, tree in sides:
                    start = time.perf_counter()
                    results[side] = run_once(tree, root / "run", workload)
                    walls.append(time.perf_counter() - start)
                for metric in METRICS:
                    before, after = (float(results[s][metric]) for s in ("base", "patched"))
                    levels[metric].append(before)
                    ratios[subject][metric].append(100 * math.log(after / before))
                end_helpers()
                same = results["base"]["response_digest"] == results["patched"]["response_digest"]
                digests[subject].add("same" if same else "differs")

    against = options.against or "the baseline"
    print(f"{options.workload}, {options.pairs} pairs, against {against}; medians there: ", end="")
    print(", ".join(f"{m} {statistics.median(levels[m]):.3f}" for m in METRICS), end="")
    print(f"; one run takes {statistics.median(walls):.2f} s\n")
    heads = "".join(f" {metric + ' %':>24} |" for metric in METRICS)
    print(f"| {'patch':44} |{heads} digest |")
    print(f"|{'-' * 46}|" + f"{'-' * 25}:|" * len(METRICS) + "--------|")
    for subject in subjects:
        cells = ""
        for metric in METRICS:
            ordered = sorted(ratios[subject][metric])
            low = ordered[len(ordered) // 10]
            high = ordered[-1 - len(ordered) // 10]
            cells += f" {statistics.median(ordered):+7.1f} [{low:+6.1f}, {high:+6.1f}] |"
        print(f"| {subject:44} |{cells} {'/'.join(sorted(digests[subject]))} |")


if __name__ == "__main__":
    main()
