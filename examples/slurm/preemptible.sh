#!/bin/bash
# A run in a partition whose jobs give way to others.
#
#     sbatch --partition=YOURS examples/slurm/preemptible.sh
#
# A preempted job has the partition's GraceTime, if it gets the notice, and KillWait after that
# (`scontrol show partition`, `scontrol show config`); --grace has to fit into the latter.
# The notice is SIGUSR1 where the cluster has preempt_send_user_signal, else the job learns of it
# from scontrol, within 30 s, or from SIGTERM.
# Without a notice in time, what was saved last counts: so save often.

#SBATCH --job-name=train
#SBATCH --partition=preemptible
##SBATCH --gpus=1
#SBATCH --open-mode=append
# SLURM queues a preempted job again only where both allow it, and only one that it had to end.
#SBATCH --requeue
#SBATCH --signal=B:USR1@40

exec orchestrator run --run-dir runs/train --slurm-requeue --every 2m -- python train.py
