"""What the user asked for: by vLLM's own options for offloading, or by those of weighbridge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .._options import BUDGETS, LayerOptions, given_options, listed

NAME = "weighbridge"
"""The load format, and the key of the options in vLLM's ``additional_config``."""
Experts = Literal["auto", "cache", "views"]
COMPILED = "compiled"
"""The key among them by which the plug-in tells compiled code apart."""


@dataclass(frozen=True)
class Options(LayerOptions):
    """The options of the plug-in: those of ``additional_config["weighbridge"]`` and vLLM's own."""

    load_format: str = "auto"
    """vLLM's format of the weights, which is used to load them."""
    experts: Experts = "auto"
    """Whether caches of the recently used ones carry fused experts, or they are read in place;
    ``"auto"`` makes caches if ``expert_bytes`` is given."""
    expert_bytes: int = 0
    """Limits the device memory of the caches; 0 is what the other weights leave of
    ``device_bytes``."""

    @property
    def caches_experts(self) -> bool:
        """Whether caches carry fused experts."""
        return self.experts == "cache" or (self.experts == "auto" and self.expert_bytes > 0)

    def check_experts(self) -> None:
        """Raises ValueError if what is said of experts does not fit the budget."""
        if self.experts not in get_args(Experts):
            raise ValueError(f"experts is {self.experts!r}: use {' or '.join(get_args(Experts))}")
        if self.experts == "views" and self.expert_bytes:
            raise ValueError("experts is 'views', which takes no expert_bytes: leave one out")
        if self.caches_experts and self.group_size:
            raise ValueError(
                "asked for caches of experts with --offload-group-size, which prefetches whole "
                "layers: give offload_bytes or device_bytes instead"
            )
        if self.caches_experts and self.device_bytes is None and not self.expert_bytes:
            raise ValueError(
                "expert_bytes is 0 with a budget of host memory: say how many bytes of device "
                "memory the caches of experts may take"
            )

    @classmethod
    def of(cls, vllm_config: Any) -> Options:
        """Returns the options of an engine. Raises ValueError for unknown or contradictory ones."""
        given = vllm_config.additional_config
        if not isinstance(given, Mapping):
            raise ValueError(
                f"additional_config is a {type(given).__name__}: pass a dictionary, to which "
                f"{NAME} adds what tells its compiled code from other code"
            )
        given = given.get(NAME, {})
        if isinstance(given, Mapping):
            given = {name: value for name, value in given.items() if name != COMPILED}
        own = given_options(given, cls, f"additional_config[{NAME!r}]")
        vllms = _of_vllm(vllm_config.offload_config)
        both = sorted(own.keys() & vllms.keys())
        budgets = [name for name in BUDGETS if name in {**own, **vllms}]
        if both or len(budgets) > 1:
            raise ValueError(
                f"additional_config[{NAME!r}] has {listed(own)}, and vLLM's options for "
                f"offloading say {listed(vllms)}: give one budget, in one of these places"
            )
        if not budgets:
            raise ValueError(
                f"--load-format {NAME} needs a budget: --cpu-offload-gb, --offload-group-size, or "
                f"offload_bytes or device_bytes in --additional-config, such as "
                f'\'{{"{NAME}": {{"device_bytes": "12GiB"}}}}\''
            )
        options = cls(**{**own, **vllms})
        if options.load_format.lower() == NAME:
            raise ValueError(
                f"load_format is {options.load_format!r} in additional_config[{NAME!r}], which is "
                "this format itself: name the format that loads the weights, such as 'auto', or "
                "leave it out"
            )
        options.check_experts()
        return options


def _of_vllm(offload: Any) -> dict[str, Any]:
    """Returns what vLLM's options say, by its own rules of which of them count."""
    uva, prefetch = offload.uva, offload.prefetch
    backend = offload.offload_backend
    if backend == "auto":
        backend = "prefetch" if prefetch.offload_group_size > 0 else "uva"
    found: dict[str, Any] = {}
    if backend == "prefetch":
        found["group_size"] = prefetch.offload_group_size
        found["num_in_group"] = prefetch.offload_num_in_group
        found["depth"] = prefetch.offload_prefetch_step + 1
        found["select"] = tuple(sorted(prefetch.offload_params))
    elif uva.cpu_offload_gb > 0:
        found["offload_bytes"] = int(uva.cpu_offload_gb * 2**30)
        found["select"] = tuple(sorted(uva.cpu_offload_params))
    if not found.get("select"):
        found.pop("select", None)
    return found
