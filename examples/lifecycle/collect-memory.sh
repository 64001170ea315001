#!/bin/sh
# [stages.collect] what the service has used so far, from outside of it.
#
# VmHWM is the peak of the resident set since the start. Of one process: for a service with workers,
# sum it over `pgrep -P "$SERVICE_PID"`, or take service_peak_rss_mb, which aiopt measures itself.
set -eu
while read -r name value unit; do
    case $name in
    VmHWM:) echo "peak_rss_mb=$((value / 1024)).$((value % 1024 * 10 / 1024))" ;;
    VmRSS:) echo "current_rss_mb=$((value / 1024)).$((value % 1024 * 10 / 1024))" ;;
    esac
done <"/proc/${SERVICE_PID:?}/status"
