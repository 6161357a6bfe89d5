#!/usr/bin/env bash
# One process per GPU of several machines, with torchrun: run the same command on each machine.
#
#   NNODES=2:4 RDZV_ENDPOINT=node-1:29400 RDZV_ID=mine \
#       configs/launch/nodes.sh configs/published/asd-sd-hyper-ingp-mg15.yaml corpus=prompts.txt prior=FOLDER \
#         output=/shared/mine
#
# Run it in the folder of train.py, with the environment active, at the same path on all machines. To fill in:
#   NNODES         number of machines: 4, or MIN:MAX to continue with fewer while some are down
#   RDZV_ENDPOINT  rendezvous: one of the machines, as `hostname` prints it there, and a free port
#   RDZV_ID        any word, the same on all
#   output         on a file system that all share
#   PROCESSES      processes per machine, if not one per GPU; MAX_RESTARTS, if not 10
#
# If a process or a machine fails, the others restart their processes and resume from the last checkpoint, with MIN
# machines or more, after some 45 s; run the same command on a recovered machine to let it rejoin. Each machine counts
# restarts that others cause, up to MAX_RESTARTS. Fewer machines make a smaller batch (prompts_per_process on each).
# The machine of RDZV_ENDPOINT is essential: if it fails, all exit, and the same command on all restarts them.
# SIGTERM or Ctrl-C on one machine saves and removes that machine. torchrun then waits 120 s for its processes, but
# always 30 s if it stops them only to restart them. SIGUSR1 ends only torchrun: do not send it.
set -euo pipefail
: "${NNODES:?how many machines, e.g. NNODES=2 or NNODES=2:4}"
: "${RDZV_ENDPOINT:?where they meet, e.g. RDZV_ENDPOINT=node-1:29400}"
: "${RDZV_ID:?a word that is the same on all, e.g. RDZV_ID=mine}"
# Without this, torch 2.15 lets no machine join a running rendezvous: both sides wait for 60 s and exit.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export PET_SHUTDOWN_TIMEOUT=120 # torchrun's --shutdown-timeout, an option that torch 2.11 lacks
exec torchrun --nnodes "$NNODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${MAX_RESTARTS:-10}" \
    --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "$RDZV_ID" train.py "$@"
