"""The one budget that a plan or a resize takes."""

from __future__ import annotations

from ._abi import wb_offloader_resize_options, wb_plan_options
from ._arguments import unsigned
from ._enums import BUDGET_KIND
from .errors import Status, make


def set_budget(
    options: wb_plan_options | wb_offloader_resize_options,
    what: str,
    *,
    offload_bytes: int | None,
    device_bytes: int | None,
) -> None:
    """Sets the budget in options; ``what`` they are of is for the error of none or both."""
    budgets = {"offload_bytes": offload_bytes, "device_bytes": device_bytes}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        asked = "both are" if given else "neither is"
        raise make(
            Status.INVALID_ARGUMENT,
            f"{what} takes one budget, {' or '.join(budgets)}; {asked} given: give exactly one",
        )
    ((name, value),) = given.items()
    options.budget_kind = BUDGET_KIND.code(name)
    options.budget_bytes = unsigned(value, name)
