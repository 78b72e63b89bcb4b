"""A small container runtime whose rootfs is a unionfs mount."""
