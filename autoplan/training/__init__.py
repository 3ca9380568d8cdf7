"""Trainings: what a fold on disk is, what is missing, who works on it, this machine or a cluster."""
