"""Datasheet figures of known devices: what the maker states, not what anyone measured here."""

import re
from typing import NamedTuple


class Device(NamedTuple):
    name: str
    tflops: float  # dense bf16 with fp32 accumulation (fp16 where the device has no bf16), 1e12/s
    memory_gib: float
    memory_gbs: float  # bandwidth of its memory, 1e9 bytes/s
    link_gbs: float  # between devices of a host, one way, 1e9 bytes/s: NVLink, or PCIe where none


# By what the name that CUDA reports contains; the first that fits counts, so the longer come first.
DATASHEET = {
    "b200": Device("NVIDIA B200", 2250, 180, 8000, 900),
    "h200": Device("NVIDIA H200", 989, 141, 4800, 450),
    "h100": Device("NVIDIA H100 SXM", 989, 80, 3350, 450),
    "a100-80": Device("NVIDIA A100 80GB SXM", 312, 80, 2039, 300),
    "a100": Device("NVIDIA A100 40GB SXM", 312, 40, 1555, 300),
    "l40s": Device("NVIDIA L40S", 362, 48, 864, 32),
    "l4": Device("NVIDIA L4", 121, 24, 300, 32),
    "a10": Device("NVIDIA A10", 125, 24, 600, 32),
    "v100": Device("NVIDIA V100 32GB SXM2 (fp16)", 125, 32, 900, 150),
    "t4": Device("NVIDIA T4 (fp16)", 65, 16, 320, 16),
    "rtx 4090": Device("NVIDIA GeForce RTX 4090", 165, 24, 1008, 32),
    "rtx 3090": Device("NVIDIA GeForce RTX 3090", 71, 24, 936, 32),
}


def device_of(name: str) -> Device | None:
    """The datasheet of a device by the name that CUDA reports, None where it is not known."""
    words = name.lower().replace("-sxm4", "").replace("-80gb", " 80gb").replace(" 80gb", "-80")
    found = (device for key, device in DATASHEET.items() if re.search(rf"\b{key}\b", words))
    return next(found, None)
