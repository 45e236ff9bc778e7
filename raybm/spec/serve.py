"""ServeSpec: what stands under `args` in a serve_configs/ file."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from raybm.core.spec import Check, Spec
from raybm.engines import EngineSpec
from raybm.engines.base import EngineBase
from raybm.engines.transformers.spec import Transformers
from raybm.models.spec import Reference
from raybm.spec.autoscaling import Autoscaling

GATEWAY_NAME = "gateway"  # the gateway's deployment; models' deployments have the models' names
BATCHES_NAME = "batches"  # that of the worker of offline batches
BATCHES_CPUS = 0.1  # it waits for models nearly all of its time


def model_of(name: str) -> str:
    """The served model that a request's `model` names: itself, or through one of its adapters (MODEL:ADAPTER)."""
    return name.partition(":")[0]


def _weights(ref: str | None, engine: EngineBase) -> tuple[str, str] | None:
    if engine.WEIGHTS and ref is None:
        return "this key is required and missing.", "Say which weights, such as registry:name@prod."
    if ref is not None and not engine.WEIGHTS:
        return "this engine's model is elsewhere.", "Drop `ref`; `engine` says where."
    return None


def _of_replicas(path: str, given: Any, engine: EngineBase) -> tuple[str, str] | None:
    if engine.WEIGHTS or given == ServedModel.model_fields[path].default:
        return None
    return "an endpoint has no replicas here: gateways ask it themselves.", "Drop it; `gateway.replicas` says how many ask."


OF_REPLICAS = ("autoscaling", "cpus", "gpus", "accelerator_type")


class AnswerCache(Spec):
    """What each gateway keeps of a model's answers."""

    max_bytes: PositiveInt = 64_000_000
    """The least recently used answers leave where they would be more."""
    ttl_s: PositiveFloat = 600.0
    """An older answer is asked for again."""


class ServedModel(Spec):
    """One model behind the gateway: one Serve deployment, or (engine `remote`) an endpoint that the gateway asks itself."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The `model` of a request."""
    ref: Reference | None = None
    """Which weights; a `registry:name@alias` is looked up when a replica starts. An engine that asks elsewhere has none."""
    engine: EngineSpec = Transformers()
    autoscaling: Autoscaling = Autoscaling()
    cpus: NonNegativeFloat = 1.0
    """CPUs of each replica."""
    gpus: NonNegativeFloat = 0.0
    """GPUs of each replica; a part of one lets several replicas share it."""
    accelerator_type: str | None = None
    """Ray's name of the accelerator, such as H100 or A100."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that one replica holds at once; of an endpoint, what one gateway asks it at once."""
    max_queued_requests: PositiveInt = 256
    """Requests that wait for one of these places; one more is refused with 503."""
    offline_requests: PositiveInt | None = None
    """Lines of offline batches (`/v1/batches`) that it works on at once, so that live requests have the rest of its room; an endpoint is
    asked them beside what the gateways ask. Default: a quarter of max_ongoing_requests."""

    routing: Literal["least_loaded", "prefix"] = "least_loaded"
    """Which replica gets a request: of two the idler, or (prefix) the one that had requests with the same beginning, as long as it is not
    busier than the others."""
    cache: AnswerCache | None = None
    """Give answers that are taken to come out the same again (predictions, embeddings, greedy and seeded generations) from the gateway's
    memory, to the tenant that had them. Default: no."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("ref",),
            lambda ref: (
                ("a model from scratch knows nothing.", "Serve a trained one: registry:name@alias.")
                if ref and ref.startswith("scratch:")
                else None
            ),
        ),
        Check(("ref", "engine"), _weights),
        Check(
            ("autoscaling", "engine"),
            lambda scale, engine: (
                (f"{scale.by.kind} goes by tokens, which a replica of {engine.kind} does not see.", "Take ongoing_requests or queue.")
                if engine.WEIGHTS and not engine.TOKENS and scale.by.kind in ("ttft", "tokens_in_flight")
                else None
            ),
        ),
        *(Check((path, "engine"), partial(_of_replicas, path)) for path in OF_REPLICAS),
        Check(
            ("routing", "engine"),
            lambda routing, engine: (
                (
                    f"{engine.kind} keeps no beginnings of prompts here.",
                    "Drop it, or take the engine vllm or ray_llm with prefix_cache, and without prefill.",
                )
                if routing == "prefix" and not engine.keeps_prefixes()
                else None
            ),
        ),
        Check(
            ("cpus", "engine"),
            lambda cpus, engine: (
                ("a replica in a placement group cannot be placed without any.", "Set a part of one, such as 0.1.")
                if not cpus and (engine.workers() > 1 or engine.PLACEMENT_GROUP)
                else None
            ),
        ),
        Check(
            ("gpus", "engine"),
            lambda gpus, engine: (
                (f"{gpus:g} is not what the engine is spread over.", f"Set {engine.workers()}: tensor_parallel × pipeline_parallel.")
                if gpus != engine.workers() and (engine.workers() > 1 or (engine.PLACEMENT_GROUP and gpus))
                else None
            ),
        ),
    )


class ApiKey(Spec):
    """A tenant's key, as the SHA-256 of the key (`raybm key TENANT` makes one)."""

    tenant: str
    """Who holds it: the name in metrics and logs."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """64 hexadecimal digits; the key itself is stored nowhere."""
    requests_per_minute: PositiveInt | None = None
    """One more is refused with 429; all keys of a tenant share them. Default: no limit."""


class GatewaySpec(Spec):
    """The one HTTP entrance."""

    api_keys: tuple[ApiKey, ...] = ()
    """Who may ask. Empty: everybody who reaches the port (loopback by default)."""
    max_body_bytes: PositiveInt = 1_000_000
    """A larger request is refused with 413."""
    max_inputs: PositiveInt = 256
    """Texts in one classification or embedding request."""
    max_file_bytes: PositiveInt = 200_000_000
    """A larger file (`/v1/files`) is refused with 413."""
    max_batch_lines: PositiveInt = 50_000
    """Requests in one offline batch (`/v1/batches`)."""
    request_timeout_s: PositiveFloat = 120.0
    """A request that has not been answered by then ends with an error."""
    cpus: NonNegativeFloat = 0.5
    """CPUs of each gateway replica."""
    replicas: PositiveInt = 1
    """Gateway processes; requests are spread over them."""

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("api_keys",),
            lambda keys: ("a key is listed twice.", "List each once.") if len({key.sha256 for key in keys}) < len(keys) else None,
        ),
        Check(
            ("api_keys",),
            lambda keys: (
                ("the keys of a tenant differ in requests_per_minute, which they share.", "Give them one number, or tenants of their own.")
                if len({(key.tenant, key.requests_per_minute) for key in keys}) > len({key.tenant for key in keys})
                else None
            ),
        ),
    )


class ServeSpec(Spec):
    """A gateway and the models behind it."""

    storage: str = "~/.raybm"
    """Where the registry is, and clients' files and batches: a folder that all nodes share, or s3://bucket/prefix."""
    models: Annotated[tuple[ServedModel, ...], Field(min_length=1)]
    gateway: GatewaySpec = GatewaySpec()

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("models",),
            lambda models: (
                ("two models have the same name.", "Give each its own.") if len({m.name for m in models}) < len(models) else None
            ),
        ),
        Check(
            ("models",),
            lambda models: (
                (f"{GATEWAY_NAME!r} and {BATCHES_NAME!r} are the gateway's own names.", "Call the model something else.")
                if any(m.name in (GATEWAY_NAME, BATCHES_NAME) for m in models)
                else None
            ),
        ),
    )


class HttpOptions(Spec):
    """Where Serve's proxies listen."""

    host: str
    """Required: left out, plain `serve deploy` would listen on every interface."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """TCP port of the proxies."""
    request_timeout_s: PositiveFloat | None = None
    """Serve's own deadline of a request; the gateway has one too."""
    keep_alive_timeout_s: PositiveInt = 5
    """How long an idle connection stays open."""
    proxy: Literal["auto", "haproxy", "python"] = "auto"
    """What listens: HAProxy, Serve's own proxy (python), or (auto) HAProxy where there is one and `raybm deploy` starts Ray itself."""


class Application(Spec):
    """One entry of `applications:` in Ray Serve's own config format."""

    name: Annotated[str, Field(min_length=1)] = "raybm"
    """Name of the application in Ray Serve."""
    route_prefix: Annotated[str, Field(pattern=r"^/([^{}]*[^{}/])?$")] = "/"
    """Where its paths begin: / or such as /a."""
    import_path: str
    """Always raybm.serving.app:build."""
    args: ServeSpec

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("import_path",),
            lambda path: (
                (f"{path!r} is not raybm's application.", "Use raybm.serving.app:build.") if path != "raybm.serving.app:build" else None
            ),
        ),
    )


class ServeConfig(Spec):
    """A serve_configs/ file: what both `raybm deploy` and `serve deploy` take."""

    proxy_location: Literal["EveryNode", "HeadOnly"] = "EveryNode"
    """On which nodes a proxy listens."""
    http_options: HttpOptions
    applications: Annotated[tuple[Application, ...], Field(min_length=1)]

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check(
            ("applications",),
            lambda apps: (
                ("two applications have the same name.", "Give each its own.") if len({a.name for a in apps}) < len(apps) else None
            ),
        ),
        Check(
            ("applications",),
            lambda apps: (
                ("two applications have the same route_prefix.", "Give each its own, such as /a and /b.")
                if len({a.route_prefix for a in apps}) < len(apps)
                else None
            ),
        ),
    )
