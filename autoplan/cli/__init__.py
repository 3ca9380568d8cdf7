"""The command line: flags, and one function a command."""
