"""What goes from a gateway to a replica and back, as bytes.

Ray carries bytes as they are. Each object of ours it would pickle for itself, by cloudpickle within msgpack, in three times the time.
"""

from __future__ import annotations

import pickle
from typing import Any


def packed(content: Any) -> bytes:
    return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301  from a process of the same application, as what Ray itself unpickles
