"""What trainings and predictions need: memory, arithmetic, seconds of this machine."""
