"""Datasets as they lie on disk: layouts, images and labels, facts of cases, fingerprints."""
