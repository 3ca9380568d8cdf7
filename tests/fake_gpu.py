"""A GPU that is none: tensors that say they lie on cuda:0, while their values lie in the host's memory.

Like those of CUDA they refuse to become numpy arrays, and to meet tensors of the host in an operation. All that a
computation makes of them lies there, too, until it is copied to the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, HOST = torch.device("cuda", 0), torch.device("cpu")
NO_ARRAY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
FACTORIES = ("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
NEW = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
CROSSING = ("copy_", "_to_copy", "set_")
"""Operations that take tensors of both devices."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
"""A tensor of the GPU may be indexed by one of the host, not the other way round."""


class Gpu(TorchDispatchMode):
    """Knows which memory is the GPU's, by the storage of the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}  # kept, so that no other one gets the same address
        self.calls, self.made, self.moves = 0, 0, False

    @staticmethod
    def _address(tensor: torch.Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies there."""
        return self._address(tensor) in self.storages

    def take(self, tensor: Any) -> Any:
        """The tensor, which lies there from now on."""
        storage = tensor.untyped_storage()
        self.storages[storage._cdata] = storage
        return tensor

    def give(self, tensor: Any) -> Any:
        """The tensor, which lies on the host from now on."""
        self.storages.pop(self._address(tensor), None)
        return tensor

    def moved(self, tensor: torch.Tensor, result: torch.Tensor, device: Any) -> torch.Tensor:
        """What came of moving a tensor to a device: a copy where it lay on the other one."""
        if _is_gpu(device) == self.has(tensor):
            return result
        copy = result.clone() if self._address(result) == self._address(tensor) else result
        return self.take(copy) if _is_gpu(device) else self.give(copy)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [self.has(tensor) for tensor in tensors]
        name = func.overloadpacket.__name__
        if any(there) and name not in CROSSING:
            self.calls += 1
            held = [g for t, g in zip(tensors, there, strict=True) if t.ndim and self._address(t) != self.made]
            mixed = any(held) and not all(held)
            if mixed and not (name in INDEXING and there[0]):
                raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name})")
        result = func(*args, **kwargs)
        if not tensors and isinstance(result, torch.Tensor):
            # Made within an operation, as in one_hot, for its result: it lies where the operation's tensors lie.
            self.made = self._address(result)
        if name == "copy_" or not any(there):
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.take(leaf)
        return result


def _is_gpu(device: Any) -> bool:
    """Whether a device, or what names one, is the GPU."""
    return torch.device(device).type == "cuda"


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """Within it, "cuda:0" can be named as the device of tensors and modules. In the thread of the caller alone."""
    gpu = Gpu()
    for name in FACTORIES:
        monkeypatch.setattr(torch, name, _factory(gpu, getattr(torch, name)))
    for name in NEW:
        monkeypatch.setattr(torch.Tensor, name, _new(gpu, getattr(torch.Tensor, name)))
    for name in ("numpy", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, _refusing(gpu, getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch.Tensor, "to", _to(gpu, torch.Tensor.to))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *_: self.to(HOST))
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", _deepcopy(gpu, torch.Tensor.__deepcopy__))
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: GPU if gpu.has(self) else HOST), raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(gpu.has), raising=False)
    with gpu:
        yield gpu


def _to(gpu: Gpu, plain: Any) -> Any:
    def to(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if gpu.moves:  # the way through `__torch_function__` of a subclass
            return plain(self, *args, **options)
        given, device = list(args), options.get("device")
        if given and isinstance(given[0], torch.Tensor):
            device = given[0].device
        elif given and not isinstance(given[0], torch.dtype):
            device, given[0] = given[0], given[0] and HOST
        if "device" in options:
            options["device"] = HOST
        gpu.moves = True
        try:
            result = plain(self, *given, **options)
        finally:
            gpu.moves = False
        return result if device is None else gpu.moved(self, result, device)

    return to


def _refusing(gpu: Gpu, plain: Any) -> Any:
    def method(self: torch.Tensor, *args: Any, **options: Any) -> Any:
        if gpu.has(self):
            raise TypeError(NO_ARRAY)
        return plain(self, *args, **options)

    return method


def _deepcopy(gpu: Gpu, plain: Any) -> Any:
    def deepcopy(self: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        copy = plain(self, memo)
        return gpu.take(copy) if gpu.has(self) else copy

    return deepcopy


def _factory(gpu: Gpu, plain: Any) -> Any:
    def made(*args: Any, **options: Any) -> torch.Tensor:
        device = options.pop("device", None)
        result = plain(*args, **options)
        gpu.made = 0
        if device is None:
            return result
        if args and isinstance(args[0], torch.Tensor):  # as_tensor
            return gpu.moved(args[0], result, device)
        return gpu.take(result) if _is_gpu(device) else result

    return made


def _new(gpu: Gpu, plain: Any) -> Any:
    def made(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        device = options.pop("device", None) or self.device
        result = plain(self, *args, **options)
        return gpu.take(result) if _is_gpu(device) else gpu.give(result)

    return made
