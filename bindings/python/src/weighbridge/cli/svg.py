"""A plan as SVG: a bar for each group of the model, coloured by transfer mode."""

from __future__ import annotations

from xml.sax.saxutils import escape

from .._text import in_words
from ..plan import Plan, PlanParameterInfo

_BARS, _LETTER, _ROW, _HEAD = 600, 7, 22, 64
_COLOURS = {
    "resident": "#9aa5b1",
    "prefetch": "#2f9e44",
    "on-demand": "#f08c00",
    "zero-copy": "#1971c2",
}
_STYLE = """
text { font: 12px sans-serif; fill: #333 } .title { font-size: 14px; font-weight: bold }
.number { text-anchor: end } rect { stroke: #fff; stroke-width: 0.5 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } rect { stroke: #111 } }
"""


def plan_svg(plan: Plan) -> str:
    """Returns the SVG. A tooltip shows a parameter's bytes, transfer mode and reason."""
    groups = plan.groups
    members: list[list[PlanParameterInfo]] = [[] for _ in groups]
    for index, parameter in enumerate(plan.parameters):
        if parameter.tied_to == index:  # tied parameters share their bytes
            members[parameter.group].append(parameter)
    info = plan.info
    labels = 30 + _LETTER * max((len(group.name) for group in groups), default=0)
    width, height = labels + _BARS + 90, _HEAD + _ROW * len(groups) + 12
    widest = max((sum(p.span_bytes for p in group) for group in members), default=0)
    scale = _BARS / max(widest, 1)
    title = (
        f"{in_words(info.offloaded_bytes)} of {in_words(info.payload_bytes)} in host memory, "
        f"{in_words(info.slot_bytes)} of slots"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="10" y="22">{escape(title)}</text>',
        *_legend(labels),
    ]
    for at, (group, inside) in enumerate(zip(groups, members)):
        parts += _bar(labels, _HEAD + at * _ROW, group.name, inside, scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(left: int) -> list[str]:
    parts = []
    for at, (kind, colour) in enumerate(_COLOURS.items()):
        x = left + 110 * at
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="46">{kind}</text>')
    return parts


def _bar(
    labels: int, top: int, name: str, inside: list[PlanParameterInfo], scale: float
) -> list[str]:
    parts = [f'<text class="number" x="{labels - 10}" y="{top + 14}">{escape(name)}</text>']
    left = float(labels)
    # Parameters of one kind are adjacent, so that their total length can be compared.
    for parameter in sorted(inside, key=lambda p: list(_COLOURS).index(kind_of(p))):
        width = parameter.span_bytes * scale
        words = f"{parameter.name}: {parameter.span_bytes:,} bytes, {parameter.reason}"
        parts.append(
            f'<rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{_ROW - 5}" '
            f'fill="{_COLOURS[kind_of(parameter)]}"><title>{escape(words)}</title></rect>'
        )
        left += width
    total = in_words(sum(parameter.span_bytes for parameter in inside))
    parts.append(f'<text x="{left + 8:.2f}" y="{top + 14}">{total}</text>')
    return parts


def kind_of(parameter: PlanParameterInfo) -> str:
    """Returns "resident", or the transfer mode of an offloaded parameter."""
    return "resident" if parameter.placement == "resident" else parameter.transfer_mode
