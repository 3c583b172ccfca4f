#!/bin/bash
# One training run on one node, over as many slices of time as it needs.
#
#     sbatch examples/slurm/single.sh
#
# Ahead of the time limit, at a preemption and on a signal the state is saved and the job is queued
# again; it goes on where it was. `scancel` saves too, and the job stays ended.

#SBATCH --job-name=train
#SBATCH --time=4:00:00
##SBATCH --gpus=1
# Of a job that is queued again SLURM would empty the output file.
#SBATCH --open-mode=append
#SBATCH --requeue
# A notice for where scontrol cannot be asked, and of preemptions where the cluster sends them so:
# 40 s before the end, ten more than --grace.
#SBATCH --signal=B:USR1@40

# The supervisor takes the place of this shell, so that all that SLURM signals reaches it.
exec orchestrator run --run-dir runs/train --slurm-requeue -- python train.py
