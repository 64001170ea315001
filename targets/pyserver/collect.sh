#!/bin/sh
# What the server has used since it started, from outside the server: a patch cannot flatter it.
set -eu
exec "${PYTHON:-python3}" -B -S -E - "${SERVICE_PID:?}" <<'PYTHON'
import sys
import time

pid = int(sys.argv[1])
with open(f"/proc/{pid}/status") as status:
    for line in status:
        if line.startswith("VmHWM:"):
            print(f"peak_rss_mb={int(line.split()[1]) / 1024:.3f}")
# The CPU clock of another process, as clock_getcpuclockid(3) makes its number: nanoseconds, where
# /proc/PID/stat counts in hundredths of a second, which would be 1 % of a run.
print(f"cpu_seconds={time.clock_gettime((~pid << 3) | 2):.6f}")
PYTHON
