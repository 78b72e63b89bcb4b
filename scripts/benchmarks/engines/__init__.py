"""Container engines on the union and on fuse-overlayfs, side by side."""
