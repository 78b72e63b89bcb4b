"""containerd's snapshots on union mounts: what `unionfs-snapshotter` serves."""
