"""Where in its loop a training is: position, replay after a resume, schedules."""
