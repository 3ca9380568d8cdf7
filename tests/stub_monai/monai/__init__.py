"""Stands for MONAI where a test starts many trainings: see monai/bundle/__main__.py."""
