"""The rules of the paper and the plan that they make. Pure: no files, no torch, no clock."""
