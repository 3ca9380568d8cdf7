"""The sections of the report: each a pure function from data to blocks."""
