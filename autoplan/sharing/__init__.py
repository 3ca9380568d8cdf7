"""Bundles for others: the chosen ensemble, the folder for the Model Zoo, checks of bundles from anywhere."""
