"""How long before the job's end a run must stop, and which times are too short; pure functions."""

from orchestrator.hosts.slurm.scontrol import CONTROLLER_SECONDS, JobFacts, StopTimes
from orchestrator.system.units import duration_text

# At least this share of a short job is for training.
LEAST_TRAINING_SHARE = 0.5


def stop_lead_seconds(job: JobFacts, grace_seconds: float, save_seconds: float) -> float:
    """Return how many seconds before the job's end to stop it.

    ``save_seconds`` is how long a save may take.
    """
    wanted = max(grace_seconds, save_seconds) + CONTROLLER_SECONDS
    if job.start is None or job.end is None:
        return wanted
    return min(wanted, (1 - LEAST_TRAINING_SHARE) * max(0.0, job.end - job.start))


def timing_warnings(
    job: JobFacts, times: StopTimes, grace_seconds: float, save_seconds: float
) -> list[str]:
    """Return the warnings for the start of a run about times that are too short."""
    warnings = []
    grace = f"--grace, {duration_text(grace_seconds)}"
    wanted = max(grace_seconds, save_seconds) + CONTROLLER_SECONDS
    if stop_lead_seconds(job, grace_seconds, save_seconds) < wanted:
        limit = (job.end or 0.0) - (job.start or 0.0)
        warnings.append(
            f"the job may run for {duration_text(limit)}, and a stop before its end may take "
            f"{duration_text(wanted)}: half of the time is kept for training, so the stop may be "
            "cut off; give the job more time (sbatch --time), or lower --grace"
        )
    wait = times.kill_wait_seconds
    if wait is None:
        return warnings
    kill = f"SLURM kills {duration_text(wait)} after SIGTERM (KillWait)"
    if wait < grace_seconds:
        text = f"{kill}, which is less than {grace}: a stop without notice may be cut off"
        if times.preemption_grace_seconds:
            more = duration_text(times.preemption_grace_seconds)
            text += f", and a preemption gives {more} more only to a job that gets its notice"
        warnings.append(f"{text}; set --grace {wait:g}s")
    if save_seconds > min(wait, grace_seconds):
        warnings.append(
            f"saving may take {duration_text(save_seconds)}, which is longer than a stop may take: "
            f"{kill}, and {grace}; a stop by a signal loses the last steps: raise both"
        )
    return warnings
