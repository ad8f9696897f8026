"""Which part of a model is running, and which parameters it has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import nn

from piip.errors import ConfigError
from piip.network import PIIP

OTHER = "other"


class Attribution:
    """Knows at any time, while it is entered, which part of a model runs.

    Entering it wraps the methods in which a network does its work; leaving it takes the wrappers off.

    Args:
        model: A `PIIP` or a model that contains one.

    Attributes:
        current: Name of the part that is running.
        names: All parts, in the order of the data flow.
        on_switch: Called with the name of the part that ran, before another one starts.

    Raises:
        ConfigError: The model contains no `PIIP`.
    """

    def __init__(self, model: nn.Module) -> None:
        network = next((module for module in model.modules() if isinstance(module, PIIP)), None)
        if network is None:
            raise ConfigError(
                f"{type(model).__name__} contains no PIIP network whose cost could be measured."
            )
        self.model = model
        self.current = OTHER
        self.on_switch: Callable[[str], None] = lambda _: None
        self._calls: list[tuple[nn.Module, str, str]] = []
        self._owned: list[tuple[nn.Module, str]] = []
        self._claim_network(network)
        self._claim_surroundings(model, network)
        self.names = [*dict.fromkeys(part for *_, part in self._calls), OTHER]

    def __enter__(self) -> Self:
        """Wrap the methods."""
        for module, method, part in self._calls:
            setattr(module, method, self._wrapped(getattr(module, method), part))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the wrappers off."""
        for module, method, _ in self._calls:
            delattr(module, method)

    def parameters(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of all and of trained parameters of every part; each counts once."""
        part_of: dict[nn.Parameter, str] = {}
        for module, part in self._owned:
            for parameter in module.parameters():
                part_of.setdefault(parameter, part)
        counts = dict.fromkeys(self.names, (0, 0))
        for parameter in self.model.parameters():
            part = part_of.get(parameter, OTHER)
            total, trained = counts[part]
            size = parameter.numel()
            counts[part] = (total + size, trained + size * parameter.requires_grad)
        return counts

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Attribute what runs inside to a part."""
        outer = self.current
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> None:
        self.on_switch(self.current)
        self.current = name

    def _wrapped(self, method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return method(*args, **kwargs)

        return call

    def _claim_network(self, network: PIIP) -> None:
        self._calls += [(network, "pad", "image"), (network, "forward_features", "image")]
        for number, branch in enumerate(network.branches, start=1):
            name = "branches" if network.config.shared_weights else f"branch{number}"
            self._calls += [(branch, "embed", f"{name}.embed"), (branch, "run", f"{name}.blocks")]
            self._owned += [(branch.get_submodule("blocks"), f"{name}.blocks"), (branch, f"{name}.embed")]
        self._claim(network.interactions, "interaction")
        self._claim(network.mergings, "merge")
        self._claim(network.levels, "pyramid")

    def _claim_surroundings(self, module: nn.Module, network: PIIP) -> None:
        """Make parts of the children of every module on the way to the network."""
        if module is network:
            return
        for name, child in module.named_children():
            if any(inner is network for inner in child.modules()):
                self._claim_surroundings(child, network)
            elif isinstance(child, nn.ModuleList):
                self._claim(child, name)
            else:
                self._calls.append((child, "forward", name))
                self._owned.append((child, name))

    def _claim(self, modules: nn.ModuleList, part: str) -> None:
        self._calls += [(module, "forward", part) for module in modules]
        self._owned.append((modules, part))
