"""The benchmarks: `material` makes what is read, `workloads_*` use it, on the `peers`, as `measure` says."""
