#!/bin/bash
# One training run on one node, over as many jobs as it needs.
#
#     sbatch examples/slurm/single.sh
#
# Before the time limit, at a preemption and on a signal, the state is saved and the job is requeued.
# It resumes where it stopped. `scancel` also saves, and the job is not requeued.

#SBATCH --job-name=train
#SBATCH --time=4:00:00
##SBATCH --gpus=1
# Without this, SLURM would empty the output file of a requeued job.
#SBATCH --open-mode=append
#SBATCH --requeue
# A notice in case scontrol is unavailable, and for preemptions if the cluster announces them by
# this signal: 40 s before the end, ten more than --grace.
#SBATCH --signal=B:USR1@40

# The supervisor replaces this shell, so that it gets every signal from SLURM.
exec orchestrator run --run-dir runs/train --slurm-requeue -- python train.py
