"""Trainings for a given time: how it is divided, how much of it is gone, coarser images where it is short."""
