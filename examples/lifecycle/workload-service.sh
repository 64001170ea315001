#!/bin/sh
# [stages.workload] load on the service that deploy has started.
#
#   [metrics.latency_p99_ms]
#   role = "guard"
#   margin = 0.5               wall-clock times on a shared machine are noisy
#   [metrics.error_rate]
#   role = "guard"
#   limit = 0                  absolute, in every run
set -eu
requests=${REQUESTS:-500} # ADAPT: the same sequence every time
url="http://$SERVICE_HOST:$SERVICE_PORT/" # ADAPT
python3 - "$url" "$requests" <<'PYTHON'
import hashlib
import sys
import time
import urllib.request

url, requests = sys.argv[1], int(sys.argv[2])
times, errors, answers = [], 0, hashlib.sha256()
for number in range(requests):
    began = time.perf_counter()
    try:
        with urllib.request.urlopen(f"{url}?n={number}", timeout=10) as answer:
            answers.update(answer.read())
    except OSError:
        errors += 1
    else:
        times.append((time.perf_counter() - began) * 1000)
print(f"error_rate={errors / requests:.6f}")
print(f"response_digest={answers.hexdigest()}")
if times:  # without an answer there is no latency: nothing is printed, not 0
    times.sort()
    print(f"latency_p50_ms={times[len(times) // 2]:.4f}")
    print(f"latency_p99_ms={times[min(len(times) - 1, len(times) * 99 // 100)]:.4f}")
PYTHON
