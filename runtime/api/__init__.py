"""The Docker Engine API over the functions that unionctl's verbs call, so that docker's clients can use them.

`http` speaks HTTP, `router` and `routes` say which handler a path has, `server` listens, `daemon` holds what
one server knows; the other modules are the resources of the API, one each.
"""
