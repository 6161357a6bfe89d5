#!/usr/bin/env bash
# One process on each GPU of this machine, by torchrun.
#
#   configs/launch/one-node.sh configs/hyper-ingp-sd21.yaml corpus=prompts.txt prior=FOLDER output=outputs/mine
#
# Type it in the folder of train.py, with the environment active. To fill in: nothing. PROCESSES=2 before the
# command takes two (on a machine without GPUs it must be given), MAX_RESTARTS=0 forbids restarts.
#
# If a process fails, all are started again, up to MAX_RESTARTS times, and go on from the last checkpoint. torchrun
# does not look at exit statuses: a mistake in the settings is tried as often, with the same sentence each time.
# Ctrl-C and SIGTERM, to torchrun, save and stop; torchrun waits 120 s (its own default: 30) and then kills, and ends
# with 1 whatever its processes ended with. To go on, type the same command. Do not send SIGUSR1: it ends torchrun
# alone, and leaves the training running.
set -euo pipefail
export PET_SHUTDOWN_TIMEOUT=120 # torchrun's --shutdown-timeout, which torch 2.11's does not know
exec torchrun --standalone --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${MAX_RESTARTS:-3}" train.py "$@"
