"""Union filesystem: read-only layers, one copy-on-write layer, one tree."""

__version__ = "0.1.0"
