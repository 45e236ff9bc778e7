"""What a rank can run on, as its maker and its renter publish it.

Peaks are dense (without sparsity) and never reached: `utilisation` is the share of them that matrix products get, an assumption.
With the memory's traffic beside them (cost.py) large models come to some 0.4 of the peak in all; PaLM reports 0.46 on its TPUs
(arXiv:2204.02311, table 3), Korthikanti et al. 0.42-0.57 on A100s (arXiv:2205.05198, table 5). Links are one direction, a GPU;
`network` is a GPU's share of a node's network in the cloud instance that the price is of. Prices are on-demand list prices in US
dollars, an hour and GPU: they move, so give your own (`--price`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

GIB = 2**30


@dataclass(frozen=True)
class Device:
    name: str
    memory: int
    """Bytes."""
    bf16: float
    """Peak FLOP/s of matrix products in 16 bit (fp16 where there is no bf16)."""
    fp32: float
    """Peak FLOP/s in fp32 without TF32."""
    bandwidth: float
    """Bytes/s of its memory."""
    link: float
    """Bytes/s to another one in the node, one direction."""
    network: float
    """Bytes/s to another node."""
    per_node: int
    """Devices in a node of that instance."""
    watts: float
    """Thermal design power."""
    price: float | None
    """US dollars an hour."""
    source: str
    utilisation: float = 0.5
    accelerator: str = ""
    """Ray's name of it (`resources.accelerator_type`)."""
    overlaps: bool = True
    """Whether communication runs beside the backward pass (`overlap_comm`)."""
    has_bf16: bool = True


# One line a device: memory GiB, bf16 and fp32 TFLOP/s, memory, link and network GB/s, devices a node, watts, price.
_TABLE = (
    # https://www.nvidia.com/en-us/data-center/h100/ (SXM5); AWS p5.48xlarge, 3200 Gbit/s, https://aws.amazon.com/ec2/instance-types/p5/
    ("h100-80gb", 80, 989.4, 66.9, 3350, 450, 50, 8, 700, 6.88, "nvidia.com/en-us/data-center/h100; AWS p5.48xlarge ÷ 8", "H100"),
    # https://www.nvidia.com/en-us/data-center/h200/ (SXM); AWS p5en.48xlarge
    ("h200", 141, 989.4, 66.9, 4800, 450, 50, 8, 700, 7.91, "nvidia.com/en-us/data-center/h200; AWS p5en.48xlarge ÷ 8", "H200"),
    # https://www.nvidia.com/en-us/data-center/a100/ (SXM4); AWS p4d.24xlarge, 400 Gbit/s
    ("a100-40gb", 40, 312, 19.5, 1555, 300, 6.25, 8, 400, 2.74, "nvidia.com/en-us/data-center/a100; AWS p4d.24xlarge ÷ 8", "A100-40G"),
    ("a100-80gb", 80, 312, 19.5, 2039, 300, 6.25, 8, 400, 3.43, "nvidia.com/en-us/data-center/a100; AWS p4de.24xlarge ÷ 8", "A100-80G"),
    # https://www.nvidia.com/en-us/data-center/l4/ (242 with sparsity); AWS g6.xlarge
    ("l4", 24, 121, 30.3, 300, 32, 1.25, 1, 72, 0.80, "nvidia.com/en-us/data-center/l4; AWS g6.xlarge", "L4"),
    # https://www.nvidia.com/en-us/data-center/l40s/ (733 with sparsity); AWS g6e.xlarge
    ("l40s", 48, 362, 91.6, 864, 32, 2.5, 1, 350, 1.86, "nvidia.com/en-us/data-center/l40s; AWS g6e.xlarge", "L40S"),
    # AWS's and NVIDIA's "NVIDIA A10G Tensor Core GPU" data sheet of 2022 (70 dense, 140 with sparsity); AWS g5.xlarge
    ("a10g", 24, 70, 35, 600, 32, 1.25, 1, 300, 1.01, "NVIDIA/AWS A10G data sheet; AWS g5.xlarge", "A10G"),
    # https://www.nvidia.com/en-us/data-center/tesla-t4/ (fp16); AWS g4dn.xlarge
    ("t4", 16, 65, 8.1, 320, 16, 0.6, 1, 70, 0.53, "nvidia.com/en-us/data-center/tesla-t4; AWS g4dn.xlarge", "T4"),
    # https://www.nvidia.com/en-us/data-center/v100/ (SXM2, fp16); AWS p3.16xlarge, 25 Gbit/s
    ("v100", 16, 125, 15.7, 900, 150, 0.39, 8, 300, 3.06, "nvidia.com/en-us/data-center/v100; AWS p3.16xlarge ÷ 8", "V100"),
    # NVIDIA Ada GPU architecture white paper, appendix A (fp32 accumulation); RunPod's list price of March 2026
    ("rtx4090", 24, 165.2, 82.6, 1008, 32, 1.25, 1, 450, 0.60, "NVIDIA Ada white paper; RunPod on demand", ""),
    # AMD Instinct MI300X data sheet (7 Infinity Fabric links of 64 GB/s each way); Vultr's list price of March 2026
    (
        "mi300x",
        192,
        1307.4,
        163.4,
        5300,
        448,
        50,
        8,
        750,
        1.85,
        "AMD Instinct MI300X data sheet; Vultr on demand",
        "AMD-Instinct-MI300X-OAM",
    ),
)
_SIXTEEN_BIT_IS_FP16 = ("t4", "v100")

DEVICES: dict[str, Device] = {
    name: Device(
        name,
        memory * GIB,
        bf16 * 1e12,
        fp32 * 1e12,
        bandwidth * 1e9,
        link * 1e9,
        network * 1e9,
        per_node,
        watts,
        price,
        source,
        accelerator=accelerator,
        has_bf16=name not in _SIXTEEN_BIT_IS_FP16,
    )
    for name, memory, bf16, fp32, bandwidth, link, network, per_node, watts, price, source, accelerator in _TABLE
}
NAMES = (*DEVICES, "cpu")
"""What `--device` takes."""


@cache
def cpu(cores: float = 1.0, ranks: int = 1) -> Device:
    """This machine's processor, for a rank of `cores` threads with `ranks` of them sharing its memory.

    Derived, not measured: 32 fp32 FLOP a cycle and core (two 8-wide fused multiply-adds, as AVX2 has) at 3 GHz; 16-bit products are
    computed as fp32 ones where there are no AMX units; 10 GB/s of memory a core; ranks talk through gloo on loopback; 10 W a core.
    benchmarks/plan.py measures what this machine does.
    """
    from psutil import virtual_memory

    cores = min(cores, float(os.cpu_count() or 1))
    peak = 32 * 3e9 * cores
    return Device(
        "cpu",
        int(virtual_memory().total) // ranks,
        peak,
        peak,
        10e9 * cores,
        1e9,
        1.25e9,
        ranks,
        10.0 * cores,
        None,
        f"derived for {platform.machine()}",
        overlaps=False,
    )


def accelerators(resources: Iterable[str]) -> list[str]:
    """Ray's names of the kinds of accelerator among the names of a node's resources ("accelerator_type:H100" → "H100")."""
    prefix = "accelerator_type:"
    return sorted({name.removeprefix(prefix) for name in resources if name.startswith(prefix)})


def by_accelerator(accelerator_type: str | None) -> Device | None:
    """The device of that name in Ray; "A100" alone means the smaller one. None where the table does not have it."""
    if accelerator_type == "A100":
        return DEVICES["a100-40gb"]
    return next((device for device in DEVICES.values() if device.accelerator and device.accelerator == accelerator_type), None)
