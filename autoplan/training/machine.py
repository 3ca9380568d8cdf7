"""This machine: its GPUs, and the threads of a training."""

import os
import subprocess
from collections.abc import Mapping

from autoplan.base.scripts.memory import processors


def gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the visible GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return gpus_listed(listed)


def gpus_listed(text: str) -> list[str]:
    """Numbers of the GPUs that `nvidia-smi -L` lists; of a divided one, the names of its parts."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith("GPU "):
            found.append(line[4:].partition(":")[0].strip())
        elif "(UUID: MIG-" in line:
            if found and not found[-1].startswith("MIG-"):
                found.pop()
            found.append(line.partition("(UUID: ")[2].partition(")")[0])
    return found


def threads(jobs: int) -> int:
    """Threads for each of some jobs that share this machine's processors."""
    return max(1, processors() // max(1, jobs))
