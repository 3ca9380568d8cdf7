"""One page on a task, from what lies on disk: the dataset, the plan, the trainings, the result, where it came from.

`build` reads, `dataset`, `plan`, `cost`, `training`, `result` and `provenance` turn what was read into sections, `page`
turns sections into report.html and report.json.
"""
