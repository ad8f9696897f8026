"""Following the memory of tensors from the operations that make them to their end."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class MemoryWatch(TorchDispatchMode, ABC):
    """Follows the life of every tensor that operations make while it is entered.

    Args:
        existing: Tensors that are there already and do not count.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = WeakIdKeyDictionary({tensor.untyped_storage(): None for tensor in existing})

    @abstractmethod
    def label(self) -> Hashable:
        """Return what stands for a new tensor's memory."""

    @abstractmethod
    def changed(self, label: Hashable, size: int) -> None:
        """Take note of bytes that were taken or, if negative, given back."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known[storage] = label = self.label()
        size = storage.nbytes()
        self.changed(label, size)
        weakref.finalize(storage, self.changed, label, -size).atexit = False
