"""Serve's replicas listen for each other on every interface. On a Ray that has only loopback, they shall have only that too."""

from __future__ import annotations

from typing import Any


def stay_on_loopback() -> None:
    """For a replica's constructor: Serve opens the port after it."""
    import ray
    from ray.serve._private import replica

    listen = replica.add_port_to_grpc_server
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return

    def on_loopback(server: Any, address: str) -> Any:
        return listen(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = on_loopback
