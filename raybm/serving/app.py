"""The Serve application: `import_path: raybm.serving.app:build`, with a ServeSpec as its `args`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raybm.core.errors import RaybmError
from raybm.core.storage import open_storage
from raybm.engines.protocol import Delta, Embeddings, GenerateRequest
from raybm.serving import batches, files
from raybm.serving.gateway import Gateway, create_app
from raybm.serving.logs import log_with_serve
from raybm.serving.offline.record import Batches
from raybm.serving.offline.stored import Files, serving_storage
from raybm.serving.offline.worker import offline_worker
from raybm.serving.replica import Answer, Replica, load
from raybm.spec.serve import BATCHES_CPUS, BATCHES_NAME, GATEWAY_NAME, GatewaySpec, ServedModel, ServeSpec

STATUS_TIMEOUT_S = 2.0


def build(args: dict[str, Any]) -> Application:
    """Called by Serve, inside the cluster. Raises SpecError."""
    spec = ServeSpec.parse(args, "args")
    return application(spec, {model.name: partial(load, model, spec.storage) for model in spec.models})


def application(spec: ServeSpec, loaders: Mapping[str, Callable[[], Any]]) -> Application:
    """The gateway bound to one deployment a model; `loaders` build the models' engines in their replicas."""
    models = {model.name: _model(model, loaders[model.name], spec.gateway) for model in spec.models}
    room = sum(model.autoscaling.max_replicas * model.max_ongoing_requests + model.max_queued_requests for model in spec.models)
    gateway = serve.deployment(Ingress).options(
        name=GATEWAY_NAME,
        num_replicas=spec.gateway.replicas,
        ray_actor_options={"num_cpus": spec.gateway.cpus},
        max_ongoing_requests=room + 64,  # so that the models' own queues decide, and refuse with an answer in our shape
        graceful_shutdown_timeout_s=spec.gateway.request_timeout_s,
        logging_config={"enable_access_log": False},  # the gateway writes its own line
    )
    sleepers = tuple(model.name for model in spec.models if model.autoscaling.min_replicas == 0)
    worker = serve.deployment(BatchWorker).options(
        name=BATCHES_NAME,
        num_replicas=1,
        ray_actor_options={"num_cpus": BATCHES_CPUS},
        graceful_shutdown_timeout_s=1.0,  # what it leaves is taken up by the next one
    )
    offline = {model.name: model.offline_requests or max(1, model.max_ongoing_requests // 4) for model in spec.models}
    return gateway.bind(
        spec.gateway.canonical(), models, sleepers, spec.storage, worker.bind(spec.gateway.canonical(), models, offline, spec.storage)
    )


def _model(model: ServedModel, loader: Callable[[], Any], gateway: GatewaySpec) -> Application:
    scale = model.autoscaling
    actor: dict[str, Any] = {"num_cpus": model.cpus, "num_gpus": model.gpus}
    if model.accelerator_type:
        actor["accelerator_type"] = model.accelerator_type
    fixed = scale.min_replicas == scale.max_replicas
    deployment = serve.deployment(Replica).options(
        name=model.name,
        **({"num_replicas": scale.max_replicas} if fixed else {"autoscaling_config": scale.canonical()}),
        ray_actor_options=actor,
        max_ongoing_requests=model.max_ongoing_requests,
        max_queued_requests=model.max_queued_requests,
        graceful_shutdown_timeout_s=gateway.request_timeout_s,  # a redeploy lets answers finish
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(model.name, loader, model.engine.max_batch, model.engine.batch_wait_ms)


@serve.ingress()
class Ingress:
    """The gateway's deployment: hands Serve's handles to the gateway."""

    def __init__(
        self, spec: dict[str, Any], handles: dict[str, DeploymentHandle], sleepers: tuple[str, ...], storage: str, worker: DeploymentHandle
    ) -> None:
        """`worker`: Serve starts what its ingress is bound to. The two meet in the storage only."""
        log_with_serve()
        self._sleepers = sleepers
        self._status: asyncio.Task[Any] | None = None
        models = {name: Remote(handle) for name, handle in handles.items()}
        self._gateway = Gateway(GatewaySpec.parse(spec), models, self._missing)
        self._store = serving_storage(open_storage(storage), serve.get_replica_context().app_name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        store = Files(self._store), Batches(self._store)
        return create_app(self._gateway, files.routes(self._gateway, *store), batches.routes(self._gateway, *store))

    async def _missing(self) -> dict[str, str]:
        app = serve.get_replica_context().app_name
        if self._status is None or self._status.done():  # one question to the controller at a time, however many ask us
            self._status = asyncio.create_task(asyncio.to_thread(serve.status))
        status = await asyncio.wait_for(asyncio.shield(self._status), STATUS_TIMEOUT_S)
        deployments = status.applications[app].deployments
        return {
            name: deployments[name].status.value
            for name in self._gateway.models
            if name not in self._sleepers and not deployments[name].replica_states.get("RUNNING")
        }


class BatchWorker:
    """The deployment of the worker of offline batches, which nobody calls: it finds its work in the storage."""

    async def __init__(self, spec: dict[str, Any], handles: dict[str, DeploymentHandle], offline: dict[str, int], storage: str) -> None:  # type: ignore[misc]  # Serve awaits it
        log_with_serve()
        store = serving_storage(open_storage(storage), serve.get_replica_context().app_name)
        models = {name: Remote(handle) for name, handle in handles.items()}
        worker = offline_worker(GatewaySpec.parse(spec), models, offline, store)
        self._running = asyncio.create_task(worker.run())

    def check_health(self) -> None:
        """Serve replaces the worker when this raises."""
        if self._running.done():
            self._running.result()


class Remote:
    """A model behind its Serve handle. A caller that is cancelled cancels the replica's work."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._unary, self._streaming = handle, handle.options(stream=True)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        response = self._streaming.stream.remote(request)
        try:
            async for item in response:
                if isinstance(item, RaybmError):
                    raise item
                yield item
        finally:
            response.cancel()

    async def complete(self, request: GenerateRequest) -> Answer:
        answer: Answer = await self._call("complete", request)
        return answer

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        result: Embeddings = await self._call("embed", texts)
        return result

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = await self._call("predict", rows)
        return result

    async def _call(self, method: str, argument: Any) -> Any:
        response = self._unary.call.remote(method, argument)
        try:
            result = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        if isinstance(result, RaybmError):
            raise result
        return result
