"""The Serve application: `import_path: raybm.serving.app:build`, with a ServeSpec as its `args`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raybm import ops
from raybm.core.errors import RaybmError
from raybm.core.storage import Storage, open_storage
from raybm.engines.base import Place, prefill_name
from raybm.engines.loopback import stay_on_loopback
from raybm.engines.protocol import Answer, Delta, Embeddings, GenerateRequest, Relays, Scores, Tokens
from raybm.models.references import pinned
from raybm.serving import autoscaling, batches, files, routing
from raybm.serving.adapted import with_adapters
from raybm.serving.admission import Queue, size
from raybm.serving.affinity import ByPrefix
from raybm.serving.cache import Kept
from raybm.serving.coldstart import load
from raybm.serving.failover import Failover
from raybm.serving.gateway import Gateway, Model
from raybm.serving.logs import log_with_serve
from raybm.serving.metrics import version
from raybm.serving.offline.record import Batches
from raybm.serving.offline.stored import Files, serving_storage
from raybm.serving.offline.worker import offline_worker
from raybm.serving.parcel import packed, unpacked
from raybm.serving.relay import Relay
from raybm.serving.replica import Replica
from raybm.serving.routes import create_app
from raybm.serving.routing import LeastLoaded
from raybm.serving.tracing import traced
from raybm.serving.watch import Origin
from raybm.spec.serve import BATCHES_CPUS, BATCHES_NAME, GATEWAY_NAME, GatewaySpec, ServedModel, ServeSpec

STATUS_TIMEOUT_S = 2.0
NO_GPUS = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}  # Ray hides none from those who ask for none


def build(args: dict[str, Any]) -> Application:
    """Called by Serve, inside the cluster. Raises SpecError."""
    spec = _pinned(ServeSpec.parse(args, "args"))
    return application(spec, {model.name: partial(load, model, spec.storage) for model in spec.models})


def application(spec: ServeSpec, loaders: Mapping[str, Callable[..., Any]]) -> Application:
    """The gateway bound to one deployment for each model that has weights; `loaders` build their engines in their replicas."""
    models = {model.name: _model(model, loaders[model.name], spec) for model in spec.models if model.engine.WEIGHTS}
    room = sum(size(model, spec.gateway)[1] for model in spec.models)
    gateway = serve.deployment(Ingress).options(
        name=GATEWAY_NAME,
        num_replicas=spec.gateway.replicas,
        ray_actor_options={"num_cpus": spec.gateway.cpus},
        max_ongoing_requests=room + 64,  # so that the models' own queues decide, and refuse with an answer in our shape
        graceful_shutdown_timeout_s=spec.gateway.request_timeout_s,
        logging_config={"enable_access_log": False},  # the gateway writes its own line
    )
    worker = serve.deployment(BatchWorker).options(
        name=BATCHES_NAME,
        num_replicas=1,
        ray_actor_options={"num_cpus": BATCHES_CPUS},
        graceful_shutdown_timeout_s=1.0,  # what it leaves is taken up by the next one
    )
    return gateway.bind(spec.canonical(), models, worker.bind(spec.canonical(), models))


def _pinned(spec: ServeSpec) -> ServeSpec:
    """Where prompts are read apart, an alias is looked up once: both sides need the same version."""

    def one(model: ServedModel) -> ServedModel:
        moves = model.engine.prefill_replicas() and model.ref and model.ref.startswith("registry:")
        return model.model_copy(update={"ref": pinned(model.ref or "", open_storage(spec.storage))}) if moves else model

    return spec.model_copy(update={"models": tuple(map(one, spec.models))})


def _model(model: ServedModel, loader: Callable[..., Any], spec: ServeSpec) -> Application:
    scale = model.autoscaling
    place = _place(model, spec.gateway)
    fixed = scale.min_replicas == scale.max_replicas
    deployment = serve.deployment(Replica).options(
        name=model.name,
        **(
            {"num_replicas": scale.max_replicas}
            if fixed
            else {"autoscaling_config": autoscaling.config(scale, min(model.max_ongoing_requests, model.engine.max_batch))}
        ),
        **_options(model, place),
        request_router_config=routing.config(ByPrefix if model.routing == "prefix" else LeastLoaded),
        max_ongoing_requests=model.max_ongoing_requests,
        max_queued_requests=model.max_queued_requests,
        graceful_shutdown_timeout_s=place.shutdown_s,  # a redeploy lets answers finish
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False},
    )
    prefill = model.engine.prefill_application(place, model.ref or "", spec.storage)
    return deployment.bind(model.name, loader, *model.engine.batching(), version(model.ref), *(() if prefill is None else (prefill,)))


def _place(model: ServedModel, gateway: GatewaySpec) -> Place:
    kind = {f"accelerator_type:{model.accelerator_type}": 0.001} if model.accelerator_type else {}
    bundles = [{"CPU": model.cpus}, *({"GPU": 1.0, **kind} for _ in range(model.engine.workers() if model.gpus else 0))]
    own = {} if model.gpus else {"env_vars": ops.KEEPS_MEMORY | NO_GPUS}
    return Place(model.name, model.cpus, model.gpus, bundles, own, gateway.request_timeout_s)


def _options(model: ServedModel, place: Place) -> dict[str, Any]:
    """Where a replica's process is, and where those of its engine are."""
    own = {"runtime_env": place.runtime_env} if place.runtime_env else {}
    if model.engine.workers() == 1 and not model.engine.PLACEMENT_GROUP:
        accelerator = {"accelerator_type": model.accelerator_type} if model.accelerator_type else {}
        return {"ray_actor_options": {"num_cpus": place.cpus, "num_gpus": place.gpus, **accelerator, **own}}
    return {
        "ray_actor_options": {"num_cpus": place.cpus, "num_gpus": 0, **own},
        "placement_group_bundles": place.bundles,
        "placement_group_strategy": "PACK",  # on one node, if there is one with so many
    }


@serve.ingress()
class Ingress:
    """The gateway's deployment: hands Serve's handles to the gateway."""

    def __init__(self, spec: dict[str, Any], handles: dict[str, DeploymentHandle], worker: DeploymentHandle) -> None:
        """`worker`: Serve starts what its ingress is bound to. The two meet in the storage only."""
        log_with_serve()
        stay_on_loopback()
        serving = ServeSpec.parse(spec)
        storage = open_storage(serving.storage)
        self._awake = (
            *(model.name for model in serving.models if model.engine.WEIGHTS and model.autoscaling.min_replicas),
            *(prefill_name(model.name) for model in serving.models if model.engine.prefill_replicas()),
        )
        self._status: asyncio.Task[Any] | None = None
        self._gateway = Gateway(
            serving.gateway,
            _named(serving, handles, storage),
            self._missing,
            queues={model.name: Queue(*size(model, serving.gateway)) for model in serving.models},
            versions=_versions(serving),
            repeating={model.name for model in serving.models if model.engine.REPEATS},
            kept={model.name: Kept(model.cache) for model in serving.models if model.cache},
        )
        self._store = serving_storage(storage, serve.get_replica_context().app_name)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        store = Files(self._store), Batches(self._store)
        app = create_app(self._gateway, files.routes(self._gateway, *store), batches.routes(self._gateway, *store))
        return traced(app, "raybm-gateway")

    async def _missing(self) -> dict[str, str]:
        app = serve.get_replica_context().app_name
        if self._status is None or self._status.done():  # one question to the controller at a time, however many ask us
            self._status = asyncio.create_task(asyncio.to_thread(serve.status))
        status = await asyncio.wait_for(asyncio.shield(self._status), STATUS_TIMEOUT_S)
        deployments = status.applications[app].deployments
        return {name: deployments[name].status.value for name in self._awake if not deployments[name].replica_states.get("RUNNING")}


class BatchWorker:
    """The deployment of the worker of offline batches, which nobody calls: it finds its work in the storage."""

    async def __init__(self, spec: dict[str, Any], handles: dict[str, DeploymentHandle]) -> None:  # type: ignore[misc]  # Serve awaits it
        log_with_serve()
        stay_on_loopback()
        serving = ServeSpec.parse(spec)
        storage = open_storage(serving.storage)
        store = serving_storage(storage, serve.get_replica_context().app_name)
        room = {model.name: model.offline_requests or max(1, model.max_ongoing_requests // 4) for model in serving.models}
        worker = offline_worker(serving.gateway, _named(serving, handles, storage), room, store, versions=_versions(serving))
        self._running = asyncio.create_task(worker.run())

    def check_health(self) -> None:
        """Serve replaces the worker when this raises."""
        if self._running.done():
            self._running.result()


def _named(serving: ServeSpec, handles: Mapping[str, DeploymentHandle], storage: Storage) -> dict[str, Model]:
    """The models under all names that a request may give them."""
    models: dict[str, Model] = {}
    for model in serving.models:
        if model.engine.WEIGHTS:
            models[model.name] = Failover(Remote(handles[model.name]))
        else:
            models[model.name] = Relay(model.name, cast(Relays, model.engine.load(None, storage)), model.max_ongoing_requests)
    return with_adapters(models, {model.name: model.engine.adapter_names() for model in serving.models})


def _versions(serving: ServeSpec) -> dict[str, str]:
    return {model.name: version(model.ref) for model in serving.models}


class Remote:
    """A model behind its Serve handle. A caller that is cancelled cancels the replica's work."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """Keeps its methods: each time that one is asked for, a handle makes another."""
        self._unary, self._streaming = handle.call, handle.options(stream=True).stream

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        response = self._streaming.remote(packed((request, Origin())))
        try:
            async for data in response:
                item = unpacked(data)
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

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        result: Scores = await self._call("score", (query, texts))
        return result

    async def predict(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = await self._call("predict", rows)
        return result

    async def tokenize(self, request: GenerateRequest, special: bool) -> Tokens:
        tokens: Tokens = await self._call("tokenize", (request, special))
        return tokens

    async def detokenize(self, ids: Sequence[int]) -> str:
        text: str = await self._call("detokenize", ids)
        return text

    async def _call(self, method: str, argument: Any) -> Any:
        response = self._unary.remote(method, packed((argument, Origin())))
        try:
            result = unpacked(await response)
        except asyncio.CancelledError:
            response.cancel()
            raise
        if isinstance(result, RaybmError):
            raise result
        return result
