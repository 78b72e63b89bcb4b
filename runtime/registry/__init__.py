"""Registries: images are pulled from them and pushed to them.

The protocol is that of the OCI distribution-spec, which was the Docker Registry HTTP API V2.
"""
