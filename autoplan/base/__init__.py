"""What all others stand on: errors, files, JSON, numbers, tables, processes, and the scripts that bundles share."""
