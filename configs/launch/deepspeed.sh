#!/usr/bin/env bash
# One process on each GPU of this machine, or of those in a hostfile, by DeepSpeed's launcher.
#
#   configs/launch/deepspeed.sh configs/hyper-ingp-sd21.yaml distributed.strategy=zero2 \
#       corpus=prompts.txt prior=FOLDER output=/shared/mine
#   HOSTFILE=configs/launch/hostfile configs/launch/deepspeed.sh ...the same
#
# Type it once, in the folder of train.py, with the environment active: pip install -e '.[distributed]'. To fill in:
# zero1, zero2 or zero3 (there is no JSON to write), and the hostfile. With one, pdsh and ssh without a password
# are needed, the same paths on all machines, and `output` on a file system that all share.
# The strategies need no such launcher: one-node.sh, nodes.sh and slurm.sbatch take distributed.strategy as well.
#
# If a process fails, the others are stopped, and nothing is started again: the same command goes on from the last
# checkpoint. The exit status is that of the process. To stop, press Ctrl-C; processes that have not saved within 30 s
# are killed. SIGTERM to `deepspeed` on one machine ends it alone and leaves the training running: what sends
# signals, as schedulers do, does better with the other files.
set -euo pipefail
hosts=()
if [[ -n "${HOSTFILE:-}" ]]; then
    # DeepSpeed itself would train on this machine alone.
    [[ -f "$HOSTFILE" ]] || { echo "error: there is no hostfile $HOSTFILE" >&2; exit 2; }
    hosts=(--hostfile "$HOSTFILE")
fi
# Without --no_local_rank it adds --local_rank=N to what train.py is told; LOCAL_RANK is in the environment anyway.
exec deepspeed "${hosts[@]}" --no_local_rank train.py "$@"
