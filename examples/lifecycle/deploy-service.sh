#!/bin/sh
# [stages.deploy] run the service in the foreground until TERM.
#
#   run = ["./deploy-service.sh"]
#   service = true
#   ready = { http = "/health", timeout = 30 }     or { line = "^listening" } or { port = true }
#
# Started anew for each run, so that no run profits from the one before. `exec`, so that
# SERVICE_PID is the program itself and not this shell.
set -eu
data=$RUN_DIR/data # a fresh folder: deterministic data belongs into the target's folder
mkdir -p "$data"
exec ./build/program --listen "$SERVICE_HOST:$SERVICE_PORT" --data "$data" # ADAPT
