"""Bundles as text: templates, the keys of the configs, metadata, READMEs, plan.json, weights."""
