#!/bin/bash
# Several runs of one script, each with another number: seeds, settings or folds.
#
#     sbatch examples/slurm/array.sh
#
# Each task has its own run directory and is requeued separately.

#SBATCH --job-name=train
#SBATCH --array=0-3
#SBATCH --time=4:00:00
##SBATCH --gpus=1
# %A is the array's job number, %a the number of the task.
#SBATCH --output=train-%A-%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@40

exec orchestrator run --run-dir "runs/train-$SLURM_ARRAY_TASK_ID" --slurm-requeue \
    -- python train.py --seed "$SLURM_ARRAY_TASK_ID"
