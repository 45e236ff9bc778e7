"""What goes from a gateway to a replica and back, as bytes.

From one actor to another Ray carries bytes as they are. Objects of ours it would pickle one by one, by cloudpickle within msgpack.
"""

from __future__ import annotations

import pickle
from typing import Any


def packed(content: Any) -> bytes:
    return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301  from a process of the same application, as what Ray itself unpickles
