"""What the settings of engines share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from raybm.core.spec import Spec
from raybm.models.spec import check_adapter

if TYPE_CHECKING:
    from raybm.core.storage import Storage
    from raybm.engines.protocol import Engine

AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Place(NamedTuple):
    """Where a replica is."""

    name: str  # of its deployment
    cpus: float
    gpus: float
    bundles: list[dict[str, float]]
    """Of the placement group, where it has one: its own process's, then one for each of its engine's GPUs."""
    runtime_env: dict[str, Any]
    shutdown_s: float  # seconds for the answers that are under way when it is stopped


def prefill_name(model: str) -> str:
    """The deployment that reads a model's prompts: a name that no model can have."""
    return f"{model}:prefill"


class EngineBase(Spec):
    """What serving asks of every engine's settings."""

    WEIGHTS: ClassVar[bool]
    """Whether a served model's `ref` says which weights, and replicas hold them. Else it `Relays`, and the gateway asks it."""

    TOKENS: ClassVar[bool] = False
    """Whether its replica sees answers token by token."""
    REPEATS: ClassVar[bool] = False
    """Whether the same request is answered in the same pieces again."""
    PLACEMENT_GROUP: ClassVar[bool] = False
    """Whether a replica has one also where it is one process."""

    max_batch: PositiveInt = 32
    """Requests computed together."""

    @abstractmethod
    def check(self, ref: str | None, storage: Storage, say: Callable[[str], None]) -> None:
        """What can be seen before anything starts; `say` is told what cannot. Raises RaybmError."""

    @abstractmethod
    def load(self, ref: str | None, storage: Storage) -> Engine:
        """The engine, ready to answer. Raises RaybmError."""

    def batching(self) -> tuple[int, float]:
        """Rows of all requests that a replica hands over at once, at the most, and the milliseconds that the first of them waits."""
        return self.max_batch, 0.0

    def workers(self) -> int:
        """Processes with a GPU each that answer together; above 1, a replica's GPUs are as many."""
        return 1

    def prefill_replicas(self) -> int:
        """Further replicas, each as large as one that answers, that read the prompts for them."""
        return 0

    def prefill_application(self, place: Place, ref: str, storage: str) -> Any:
        """Serve's, of those. `place`: of a replica that answers, which `load`s with its handle for a third argument."""
        return None

    def keeps_prefixes(self) -> bool:
        """Whether a replica answers faster what begins as something that it had before."""
        return False

    def adapter_names(self) -> tuple[str, ...]:
        """Low-rank adapters that answers may be asked for through."""
        return ()


class LocalEngine(EngineBase):
    """An engine that answers from weights in a folder."""

    WEIGHTS = True

    @abstractmethod
    def build(self, model_dir: Path) -> Engine:
        """The engine for a folder of safetensors, config and processor. Raises Unsupported, NotFound."""

    def check(self, ref: str | None, storage: Storage, say: Callable[[str], None]) -> None:
        """Fetches the weights. Raises NotFound, Unsupported, StorageError."""
        model_folder(ref, storage)

    def load(self, ref: str | None, storage: Storage) -> Engine:
        return self.build(model_folder(ref, storage))


class AdaptedEngine(LocalEngine):
    """One whose language models can answer through adapters."""

    adapters: dict[AdapterName, Annotated[str, AfterValidator(check_adapter)]] = {}
    """Low-rank adapters (peft's folders) by name: file: or hub: references. NAME:ADAPTER is the `model` of a request for one."""

    def adapter_names(self) -> tuple[str, ...]:
        return tuple(self.adapters)


class EncodingEngine(LocalEngine):
    """One whose rows the replica batches."""

    batch_wait_ms: NonNegativeFloat = 5.0
    """An encoder's batch is computed when it is full, or no request has come for so long; four times as long it waits at the most."""

    def batching(self) -> tuple[int, float]:
        return self.max_batch, self.batch_wait_ms


def model_folder(ref: str | None, storage: Storage) -> Path:
    from raybm.models.references import resolve

    return resolve(ref or "", storage)
