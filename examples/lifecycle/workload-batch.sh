#!/bin/sh
# [stages.workload] a program that runs and ends.
#
#   [metrics.cpu_seconds]
#   measured_by = "aiopt"      so are wall_seconds and peak_rss_mb: nothing needs to be printed
#   role = "primary"
#   [metrics.output_digest]
#   kind = "digest"
#   [workloads.large]
#   env = { INPUT = "large.csv" }
set -eu
./build/program "$TARGET_DIR/data/${INPUT:?}" >"$RUN_DIR/output" # ADAPT
# The answer, so that a wrong one is invalid. Sort first if its order is free.
echo "output_digest=$(sha256sum <"$RUN_DIR/output" | cut -d ' ' -f 1)"
# Work that was done, so that doing less of it is seen: as a guard, or to look at.
echo "output_lines=$(wc -l <"$RUN_DIR/output")"
