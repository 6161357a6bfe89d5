#!/usr/bin/env bash
# One process per GPU of this machine, or of the machines in a hostfile, with DeepSpeed's launcher.
#
#   configs/launch/deepspeed.sh configs/published/asd-sd-hyper-ingp-mg15.yaml distributed.strategy=zero2 \
#       corpus=prompts.txt prior=FOLDER output=/shared/mine
#   HOSTFILE=configs/launch/hostfile configs/launch/deepspeed.sh ...the same
#
# Run it once, in the folder of train.py, with the environment active: pip install -e '.[distributed]'. To fill in:
# zero1, zero2 or zero3 (no JSON is needed), and the hostfile. A hostfile requires pdsh, passwordless ssh,
# the same paths on all machines, and `output` on a shared file system.
# The strategies do not require this launcher: one-node.sh, nodes.sh and slurm.sbatch take distributed.strategy too.
#
# If a process fails, the others are stopped and nothing restarts: run the same command to resume from the last
# checkpoint. The exit status is that of the process. To stop, press Ctrl-C; processes that have not saved within 30 s
# are killed. SIGTERM to `deepspeed` on one machine ends only the launcher and leaves the training running: under a
# scheduler, or anything else that sends signals, use the other files.
set -euo pipefail
hosts=()
if [[ -n "${HOSTFILE:-}" ]]; then
    # Without this check DeepSpeed would train on this machine only.
    [[ -f "$HOSTFILE" ]] || { echo "error: there is no hostfile $HOSTFILE" >&2; exit 2; }
    hosts=(--hostfile "$HOSTFILE")
fi
# Without --no_local_rank it adds --local_rank=N to train.py's arguments; LOCAL_RANK is in the environment anyway.
exec deepspeed "${hosts[@]}" --no_local_rank train.py "$@"
