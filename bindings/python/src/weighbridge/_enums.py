"""The words that Python uses for the constants of C's enums. Each enum stands here once.

``tests/python/test_abi.py`` compares every word and number with the headers. The word of 0 is the
default.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

DeviceKind = Literal["host", "cuda"]
HugePages = Literal["try", "off", "require"]
NumaPolicy = Literal["device", "any", "node"]
FileMode = Literal["auto", "map", "read", "source"]
Origin = Literal["allocated", "registered", "file-mapped", "file-read"]
Pinning = Literal["none", "registered", "driver"]
Phase = Literal["fault", "pin", "read", "quantize", "compress"]
Accessor = Literal["device", "host"]
AccessPattern = Literal["dense", "sparse", "experts"]
TransferMode = Literal["auto", "zero-copy", "on-demand", "prefetch"]
Placement = Literal["auto", "resident", "offloaded"]
Grouping = Literal["layer", "module"]
HostStore = Literal["copy", "source", "compressed"]
Compress = Literal["off", "auto", "selected"]
Order = Literal["spread", "declared", "largest"]
BudgetKind = Literal["offload_bytes", "device_bytes"]
Allow = Literal["nothing-offloaded", "unmatched-selector", "everything-fits"]
AddressState = Literal["own", "copied-by-graphs", "moving"]
CodeDomain = Literal["none", "errno", "cuda"]
Tristate = Literal["auto", "on", "off"]


class Words:
    """The words of one C enum, whose constants follow one another from ``first``."""

    def __init__(self, option: str, words: Any, first: int = 0, *, flags: bool = False) -> None:
        self._option = option
        self._codes: dict[str, int] = {
            word: 1 << at if flags else first + at for at, word in enumerate(get_args(words))
        }
        self._words = {code: word for word, code in self._codes.items()}

    @property
    def words(self) -> tuple[str, ...]:
        """All words, in the order of their constants."""
        return tuple(self._codes)

    def code(self, word: str) -> int:
        """Returns the C constant of a word; raises ValueError for an unknown word."""
        code = self._codes.get(word)
        if code is None:
            words = ", ".join(repr(word) for word in self._codes)
            raise ValueError(f"{self._option} is {word!r}; use one of {words}")
        return code

    def word(self, code: int) -> str:
        """Returns the word of a C constant, or its number if a newer library defines it."""
        return self._words.get(code, str(code))

    def words_in(self, flags: int) -> list[str]:
        """Returns the words of the flags that a number has."""
        return [word for word, code in self._codes.items() if flags & code]


DEVICE_KIND = Words("kind", DeviceKind, 1)
HUGE_PAGES = Words("huge_pages", HugePages)
NUMA_POLICY = Words("numa_policy", NumaPolicy)
FILE_MODE = Words("file_mode", FileMode)
ORIGIN = Words("origin", Origin, 1)
PINNING = Words("pinning", Pinning)
PHASE = Words("phase", Phase, 1)
ACCESSOR = Words("accessor", Accessor)
ACCESS_PATTERN = Words("access_pattern", AccessPattern)
TRANSFER_MODE = Words("transfer_mode", TransferMode)
PLACEMENT = Words("placement", Placement)
GROUPING = Words("grouping", Grouping)
HOST_STORE = Words("host_store", HostStore)
COMPRESS = Words("compress", Compress)
ORDER = Words("order", Order)
BUDGET_KIND = Words("budget", BudgetKind, 1)
ALLOW = Words("allow", Allow, flags=True)
ADDRESS_STATE = Words("address_state", AddressState, flags=True)
CODE_DOMAIN = Words("code_domain", CodeDomain)
TRISTATE = Words("tristate", Tristate)


def tristate(value: bool | None, option: str) -> int:
    """Returns the ``wb_tristate`` of None, True or False; raises TypeError for anything else."""
    # Words such as "no" are true: they would switch on what they ask to leave off.
    if not (value is None or value is True or value is False):
        raise TypeError(f"{option} is {value!r}: use True, False, or None for the default")
    return TRISTATE.code("auto" if value is None else "on" if value else "off")
