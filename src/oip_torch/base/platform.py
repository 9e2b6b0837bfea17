"""What does the machine give, what does work take of it, and how precise are products?"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "Costs",
    "costs",
    "free_bytes",
    "free_memory",
    "in_words",
    "keep_freed_memory",
    "matmul_precision",
    "recorded_gradients",
    "return_freed_memory",
]


def free_memory() -> int:
    """Bytes that can still be had of the machine's memory."""
    return int(psutil.virtual_memory().available)


def free_bytes(device: torch.device) -> int:
    """What can still be had of the card's memory on CUDA, else of the machine's."""
    if device.type != "cuda":
        return free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch holds it, and lends it
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def in_words(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


class Costs(NamedTuple):
    """What work of torch takes, whatever the device.

    Attributes:
        bytes: the most that tensors made by it hold at one time. What a library takes and gives back within one
            operation is not seen.
        products: the multiply-adds of its convolutions and matrix products.
    """

    bytes: int
    products: int

    def __sub__(self, other: Costs) -> Costs:
        return Costs(self.bytes - other.bytes, self.products - other.products)


def costs(work: Callable[[], Any]) -> Costs:
    """What `work` takes, done once in this thread."""
    watch = _Watch()
    with watch:
        work()
    return Costs(watch.peak, watch.products)


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors on the CPU give back, for the next ones.

    glibc hands large blocks back to the system at once, and every step would fault them in again, page by page. Does
    nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no block so large that it is mapped by itself
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: nothing is given back


@contextlib.contextmanager
def matmul_precision(*, tf32: bool = False) -> Iterator[None]:
    """Inside, products of float32 numbers are of float32 numbers, whatever the caller has set.

    Autocast is off, and on CUDA the factors are rounded to TF32 only if `tf32` says so, which is not torch's default.
    """
    value, cudnn = "tf32" if tf32 else "ieee", torch.backends.cudnn
    places: tuple[Any, ...] = (cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined] # is not declared
    before = [place.fp32_precision for place in places]
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    try:
        for place in places:
            place.fp32_precision = value
        with contextlib.ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old


@contextlib.contextmanager
def recorded_gradients() -> Iterator[None]:
    """Inside, gradients are recorded, though the caller may have switched them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _of_convolution(images: Tensor, weight: Tensor, output: Tensor, *, transposed: bool) -> int:
    """Each number of the output, of a transposed one of the input, meets one kernel."""
    return (images if transposed else output).numel() * weight[0].numel()


def _of_packed(weight: Tensor, output: Tensor) -> int:
    """Of a convolution whose weights are in oneDNN's form, so that their shape says little."""
    return output.numel() // output.shape[1] * weight.numel()


def _of_product(first: Tensor, output: Tensor) -> int:
    return output.numel() * first.shape[-1]


_PRODUCTS: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "aten::convolution": lambda given, made: _of_convolution(given[0], given[1], made, transposed=given[6]),
    "aten::convolution_backward": lambda given, made: (
        sum(given[10][:2]) * _of_convolution(given[1], given[2], given[0], transposed=given[7])
    ),
    "mkldnn::_convolution_pointwise": lambda given, made: _of_packed(given[1], made),
    "mkldnn::_convolution_pointwise.binary": lambda given, made: _of_packed(given[2], made),
    "aten::mm": lambda given, made: _of_product(given[0], made),
    "aten::bmm": lambda given, made: _of_product(given[0], made),
    "aten::addmm": lambda given, made: _of_product(given[1], made),
    "aten::baddbmm": lambda given, made: _of_product(given[1], made),
}
"""The multiply-adds of an operation, from what it was given and made."""


class _Watch(TorchDispatchMode):
    """Adds up the multiply-adds of operations, and the storages of what they return, for as long as those live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.products: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, nearly a second, only to tell it to leave this class alone."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = f"{func._schema.name}.{func._schema.overload_name}".rstrip(".")
        if name in _PRODUCTS:
            self.products += _PRODUCTS[name](args, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_mkldnn:  # weights in oneDNN's form: no storage, and kept
                self.see(tensor.untyped_storage())
        return result

    def see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, count: int) -> None:
        self.now -= count


def return_freed_memory() -> None:
    """Give the system back what glibc keeps of freed memory, blocks of up to 32 MiB; nothing with another library."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
