"""ControlService over gRPC."""

from __future__ import annotations

import grpc

from inference.control import Control
from inference.control_convert import replica_to_proto
from naru.api.inference.v1 import control_service_pb2, control_service_pb2_grpc


class ControlServicer(control_service_pb2_grpc.ControlServiceServicer):
    """Holds the replica up and lets it go on.

    Args:
        control: Does it.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    async def GetReplica(
        self,
        request: control_service_pb2.GetReplicaRequest,
        context: grpc.aio.ServicerContext[
            control_service_pb2.GetReplicaRequest, control_service_pb2.GetReplicaResponse
        ],
    ) -> control_service_pb2.GetReplicaResponse:
        return control_service_pb2.GetReplicaResponse(replica=self._replica())

    async def Pause(
        self,
        request: control_service_pb2.PauseRequest,
        context: grpc.aio.ServicerContext[control_service_pb2.PauseRequest, control_service_pb2.PauseResponse],
    ) -> control_service_pb2.PauseResponse:
        await self._control.pause()
        return control_service_pb2.PauseResponse(replica=self._replica())

    async def Drain(
        self,
        request: control_service_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[control_service_pb2.DrainRequest, control_service_pb2.DrainResponse],
    ) -> control_service_pb2.DrainResponse:
        await self._control.drain()
        return control_service_pb2.DrainResponse(replica=self._replica())

    async def Resume(
        self,
        request: control_service_pb2.ResumeRequest,
        context: grpc.aio.ServicerContext[control_service_pb2.ResumeRequest, control_service_pb2.ResumeResponse],
    ) -> control_service_pb2.ResumeResponse:
        await self._control.resume()
        return control_service_pb2.ResumeResponse(replica=self._replica())

    async def ResetPrefixCache(
        self,
        request: control_service_pb2.ResetPrefixCacheRequest,
        context: grpc.aio.ServicerContext[
            control_service_pb2.ResetPrefixCacheRequest, control_service_pb2.ResetPrefixCacheResponse
        ],
    ) -> control_service_pb2.ResetPrefixCacheResponse:
        await self._control.reset_prefix_cache()
        return control_service_pb2.ResetPrefixCacheResponse(replica=self._replica())

    async def Sleep(
        self,
        request: control_service_pb2.SleepRequest,
        context: grpc.aio.ServicerContext[control_service_pb2.SleepRequest, control_service_pb2.SleepResponse],
    ) -> control_service_pb2.SleepResponse:
        await self._control.sleep()
        return control_service_pb2.SleepResponse(replica=self._replica())

    async def Wake(
        self,
        request: control_service_pb2.WakeRequest,
        context: grpc.aio.ServicerContext[control_service_pb2.WakeRequest, control_service_pb2.WakeResponse],
    ) -> control_service_pb2.WakeResponse:
        await self._control.wake()
        return control_service_pb2.WakeResponse(replica=self._replica())

    def _replica(self) -> control_service_pb2.Replica:
        return replica_to_proto(self._control.status())
