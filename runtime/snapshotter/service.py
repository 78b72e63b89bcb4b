"""The gRPC face: containerd's messages in, a Snapshotter's methods, messages or a status out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from runtime.errors import one_line
from runtime.snapshotter import errors
from runtime.snapshotter import snapshots_pb2 as pb
from runtime.snapshotter.mounts import Mount
from runtime.snapshotter.snapshot import Kind, Snapshot
from runtime.snapshotter.snapshotter import Snapshotter

log = logging.getLogger(__name__)

NAME = "containerd.services.snapshots.v1.Snapshots"

_STATUS = {
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
}

_KINDS = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}

#: How many snapshots one message of a list holds, as in containerd.
_CHUNK = 100

#: Requests that are answered at once; long ones (remove, commit, usage) are few.
_THREADS = 10


class Service:
    """One method for each of the service's, by its name."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self.snapshotter = snapshotter

    def Prepare(self, request: pb.PrepareRequest) -> pb.MountsResponse:
        """A snapshot to write to."""
        return _mounts(self.snapshotter.prepare(request.key, request.parent, request.labels))

    def View(self, request: pb.PrepareRequest) -> pb.MountsResponse:
        """A snapshot to look at."""
        return _mounts(self.snapshotter.view(request.key, request.parent, request.labels))

    def Mounts(self, request: pb.KeyRequest) -> pb.MountsResponse:
        """How one of those is mounted."""
        return _mounts(self.snapshotter.mounts(request.key))

    def Commit(self, request: pb.CommitRequest) -> Empty:
        """What was written becomes what others stand on."""
        self.snapshotter.commit(request.key, request.name, request.labels)
        return Empty()

    def Remove(self, request: pb.KeyRequest) -> Empty:
        """A snapshot is no more."""
        self.snapshotter.remove(request.key)
        return Empty()

    def Stat(self, request: pb.KeyRequest) -> pb.InfoResponse:
        """What is known of a snapshot."""
        return pb.InfoResponse(info=_info(self.snapshotter.stat(request.key)))

    def Update(self, request: pb.UpdateRequest) -> pb.InfoResponse:
        """Labels are changed."""
        info, fields = request.info, request.update_mask.paths
        return pb.InfoResponse(info=_info(self.snapshotter.update(info.name, info.labels, fields)))

    def List(self, request: pb.ListRequest) -> Iterator[pb.ListResponse]:
        """All snapshots that a filter lets through."""
        found = [_info(snapshot) for snapshot in self.snapshotter.find(request.filters)]
        for start in range(0, len(found), _CHUNK):
            yield pb.ListResponse(info=found[start : start + _CHUNK])

    def Usage(self, request: pb.KeyRequest) -> pb.UsageResponse:
        """What a snapshot takes on the disk."""
        usage = self.snapshotter.usage(request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: pb.CleanupRequest) -> Empty:
        """What removed snapshots have left goes."""
        self.snapshotter.cleanup()
        return Empty()


#: The messages that the methods take; List answers in several.
_REQUESTS = {
    "Prepare": pb.PrepareRequest,
    "View": pb.PrepareRequest,
    "Mounts": pb.KeyRequest,
    "Commit": pb.CommitRequest,
    "Remove": pb.KeyRequest,
    "Stat": pb.KeyRequest,
    "Update": pb.UpdateRequest,
    "List": pb.ListRequest,
    "Usage": pb.KeyRequest,
    "Cleanup": pb.CleanupRequest,
}


def server(snapshotter: Snapshotter, address: str) -> grpc.Server:
    """A server of the service on a gRPC address (`unix:PATH`), which is bound and not started.

    Raises OSError when the address cannot be had.
    """
    made = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="request"))
    made.add_generic_rpc_handlers((_handlers(Service(snapshotter)),))
    try:
        made.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"{address}: {error}") from None
    return made


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    handlers = {}
    for name, request in _REQUESTS.items():
        method = getattr(service, name)
        make: Callable[..., Any] = grpc.unary_unary_rpc_method_handler
        answer = _answering(method)
        if name == "List":
            make, answer = grpc.unary_stream_rpc_method_handler, _answering_in_turn(method)
        handlers[name] = make(
            answer,
            request_deserializer=request.FromString,  # type: ignore[attr-defined]
            response_serializer=lambda message: message.SerializeToString(),
        )
    return grpc.method_handlers_generic_handler(NAME, handlers)


def _answering(method: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """The method with its errors as statuses."""

    @functools.wraps(method)
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(request)
        except errors.SnapshotError as error:
            context.abort(_STATUS[type(error)], str(error))
        except OSError as error:
            log.error("%s: %s", method.__name__, one_line(error))
            context.abort(grpc.StatusCode.UNKNOWN, one_line(error))
        except Exception as error:
            log.exception("%s", method.__name__)
            context.abort(grpc.StatusCode.INTERNAL, repr(error))

    return answer


def _answering_in_turn(method: Callable[[Any], Iterator[Any]]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """The same for a method that answers in several messages; all are made before the first is sent."""
    whole = _answering(lambda request: list(method(request)))
    return lambda request, context: iter(whole(request, context))


def _mounts(found: list[Mount]) -> pb.MountsResponse:
    return pb.MountsResponse(
        mounts=[pb.Mount(type=each.type, source=each.source, options=each.options) for each in found]
    )


def _info(snapshot: Snapshot) -> pb.Info:
    info = pb.Info(
        name=snapshot.name, parent=snapshot.parent, kind=_KINDS[snapshot.kind], labels=dict(snapshot.labels)
    )
    info.created_at.FromNanoseconds(snapshot.created)
    info.updated_at.FromNanoseconds(snapshot.updated)
    return info
