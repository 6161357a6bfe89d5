#!/usr/bin/env bash
# One process per GPU of this machine, with torchrun.
#
#   configs/launch/one-node.sh configs/published/asd-sd-hyper-ingp-mg15.yaml corpus=prompts.txt prior=FOLDER \
#     output=outputs/mine
#
# Run it in the folder of train.py, with the environment active. To fill in: nothing. PROCESSES=2 before the
# command starts two processes (required on a machine without GPUs), MAX_RESTARTS=0 disables restarts.
#
# If a process fails, all restart, up to MAX_RESTARTS times, and resume from the last checkpoint. torchrun
# ignores exit statuses: it retries a mistake in the settings as often, with the same message each time.
# Ctrl-C and SIGTERM, sent to torchrun, save and stop; torchrun waits 120 s (its default: 30), then kills, and exits
# with 1 whatever the status of its processes. To resume, run the same command. Do not send SIGUSR1: it ends only
# torchrun and leaves the training running.
set -euo pipefail
export PET_SHUTDOWN_TIMEOUT=120 # torchrun's --shutdown-timeout, an option that torch 2.11 lacks
exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${MAX_RESTARTS:-3}" train.py "$@"
