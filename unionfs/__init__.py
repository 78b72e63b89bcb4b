"""Union filesystem: read-only layers, one copy-on-write layer, one tree."""
