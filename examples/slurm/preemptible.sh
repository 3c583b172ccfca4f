#!/bin/bash
# A run in a partition whose jobs are preempted by others.
#
#     sbatch --partition=YOURS examples/slurm/preemptible.sh
#
# A preempted job has the partition's GraceTime if it gets a notice, and then KillWait
# (`scontrol show partition`, `scontrol show config`); --grace must fit into KillWait.
# The notice is SIGUSR1 if the cluster has preempt_send_user_signal. Otherwise the supervisor learns
# of the preemption from scontrol, within 30 s, or from SIGTERM.
# Without a notice in time, the run resumes from its newest checkpoint: save often.

#SBATCH --job-name=train
#SBATCH --partition=preemptible
##SBATCH --gpus=1
#SBATCH --open-mode=append
# SLURM requeues a preempted job only if the job and the partition allow it, and only a job that
# it had to end itself.
#SBATCH --requeue
#SBATCH --signal=B:USR1@40

exec orchestrator run --run-dir runs/train --slurm-requeue --every 2m -- python train.py
