#!/usr/bin/env bash
# One process on each GPU of several machines, by torchrun: the same command on every one of them.
#
#   NNODES=2:4 RDZV_ENDPOINT=node-1:29400 RDZV_ID=mine \
#       configs/launch/nodes.sh configs/hyper-ingp-sd21.yaml corpus=prompts.txt prior=FOLDER output=/shared/mine
#
# Type it in the folder of train.py, with the environment active, at the same path on all. To fill in:
#   NNODES         how many machines: 4, or MIN:MAX to go on with fewer while some are away
#   RDZV_ENDPOINT  where they meet: one of them, as `hostname` prints it there, and a free port
#   RDZV_ID        any word, the same on all
#   output         on a file system that all share
#   PROCESSES      a machine's processes, if not one a GPU; MAX_RESTARTS, if not 10
#
# If a process or a machine fails, the others start theirs again and go on from the last checkpoint, with MIN machines
# or more, after some 45 s; the same command on a machine that is back lets it join. Each machine counts how often
# others made it start again, up to MAX_RESTARTS. Fewer machines make a smaller batch (prompts_per_process on each).
# The machine of RDZV_ENDPOINT cannot be missed: if it goes, all end, and the same command on all starts them again.
# SIGTERM or Ctrl-C on one machine saves, and takes that one away. torchrun waits 120 s for its processes then, but
# always 30 s where it stops them only to start them again. SIGUSR1 ends torchrun alone: do not send it.
set -euo pipefail
: "${NNODES:?how many machines, e.g. NNODES=2 or NNODES=2:4}"
: "${RDZV_ENDPOINT:?where they meet, e.g. RDZV_ENDPOINT=node-1:29400}"
: "${RDZV_ID:?a word that is the same on all, e.g. RDZV_ID=mine}"
# Without this, torch 2.15 lets no machine join those that have met before: both wait for 60 s, and end.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export PET_SHUTDOWN_TIMEOUT=120 # torchrun's --shutdown-timeout, which torch 2.11's does not know
exec torchrun --nnodes "$NNODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts "${MAX_RESTARTS:-10}" \
    --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "$RDZV_ID" train.py "$@"
