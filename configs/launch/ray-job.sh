#!/usr/bin/env bash
# A Ray job on one machine of a Ray cluster: one process per GPU, with torchrun.
#
#   ray job submit --no-wait --working-dir . --entrypoint-num-gpus 8 -- bash configs/launch/ray-job.sh \
#       configs/published/asd-sd-hyper-ingp-mg15.yaml corpus=/shared/prompts.txt prior=/shared/FOLDER \
#       output=/shared/mine
#   ray job status JOB; ray job logs --follow JOB; ray job stop JOB
#
# Run it in the folder of train.py, with RAY_ADDRESS=http://HOST:8265. To fill in: the number of GPUs (without that
# option the job runs on the head node and gets none), and paths on file systems that the machines share; `output`
# would be lost with the copy of the working directory. The cluster's Python needs this project's packages; PYTHON
# names another one. PROCESSES=2 starts two processes. Whoever reaches the cluster's ports (8265 and others) can run
# any command on it: never open them to a network that others use.
#
# If a process fails, all restart, up to MAX_RESTARTS times, and resume from the last checkpoint. Ray starts no job
# again: submit the same one to resume. `ray job stop` sends SIGTERM, upon which the processes save, and kills them
# after 3 s; set RAY_JOB_STOP_WAIT_TIME_S=120 where `ray start` runs.
set -euo pipefail
export PET_SHUTDOWN_TIMEOUT=120 # torchrun's --shutdown-timeout, an option that torch 2.11 lacks
python=${PYTHON:-python}
# Without GPUs one process runs, on the CPU.
processes=${PROCESSES:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')}
exec "$python" -m torch.distributed.run --standalone --nproc-per-node "$processes" \
    --max-restarts "${MAX_RESTARTS:-3}" train.py "$@"
