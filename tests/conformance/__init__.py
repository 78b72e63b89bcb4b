"""A POSIX suite: one file for each call, the same expectations on any directory."""
