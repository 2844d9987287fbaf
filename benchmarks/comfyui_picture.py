"""Draws a saved ComfyUI workflow as a graph: `python benchmarks/comfyui_picture.py`, for docs/comfyui.md.

Each node is a box with its inputs on the left, its outputs on the right and its values below, each link a curve, as in
ComfyUI's own editor.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / "comfyui-ertacache" / "example_workflows" / "flux_calibrate_and_apply.json"
PICTURE = ROOT / "docs" / "images" / "comfyui.svg"
#: One for each kind of link, readable on white and on black.
COLOURS = {
    "MODEL": "#8f7bd6", "CLIP": "#c9a227", "VAE": "#d15757", "CONDITIONING": "#d9893b", "LATENT": "#c25fb5",
    "IMAGE": "#3f93d2", "SAMPLER": "#4aa564", "SIGMAS": "#2fa7a0", "STRING": "#7a8794",
}  # fmt: skip
_TITLE, _ROW, _MARGIN = 26, 20, 20


def rows(node: dict[str, Any]) -> int:
    return max(len(node["inputs"]), len(node["outputs"]))


def height(node: dict[str, Any]) -> int:
    return _TITLE + _ROW * (rows(node) + len(node["widgets_values"])) + 8


def place(node: dict[str, Any], slot: int, side: str) -> tuple[float, float]:
    """Where a link meets a node."""
    x, y = node["pos"]
    return x + (node["size"][0] if side == "outputs" else 0), y + _TITLE + _ROW * slot + _ROW / 2


def draw_link(link: list[Any], nodes: dict[int, dict[str, Any]]) -> str:
    _, origin, out, target, slot, kind = link
    (x0, y0), (x1, y1) = place(nodes[origin], out, "outputs"), place(nodes[target], slot, "inputs")
    bend = max(40.0, abs(x1 - x0) / 2)
    path = f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
    return f'<path d="{path}" fill="none" stroke="{COLOURS[kind]}" stroke-width="2.5"/>'


def draw_node(node: dict[str, Any]) -> str:
    (x, y), width = node["pos"], node["size"][0]
    own = node["type"].startswith("ERTACache")
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height(node)}" rx="6" class="box{" own" * own}"/>',
        f'<text x="{x + 10}" y="{y + 18}" class="title">{escape(node["type"])}</text>',
    ]
    for side, anchor, inset in (("inputs", "start", 10), ("outputs", "end", -10)):
        for slot, entry in enumerate(node[side]):
            at, level = place(node, slot, side)
            parts.append(f'<circle cx="{at}" cy="{level:g}" r="4.5" fill="{COLOURS[entry["type"]]}"/>')
            name = escape(entry["name"])
            parts.append(f'<text x="{at + inset}" y="{level + 4:g}" text-anchor="{anchor}">{name}</text>')
    for n, value in enumerate(node["widgets_values"]):
        level = y + _TITLE + _ROW * (rows(node) + n) + 15
        text = str(value) if len(str(value)) <= 40 else f"{str(value)[:38]}…"
        parts.append(
            f'<text x="{x + width / 2:g}" y="{level}" text-anchor="middle" class="value">{escape(text)}</text>'
        )
    return "".join(parts)


def draw(workflow: dict[str, Any]) -> str:
    """The SVG of a workflow as ComfyUI saves it."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    left, top = (min(node["pos"][axis] for node in nodes.values()) - _MARGIN for axis in (0, 1))
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values()) + _MARGIN
    bottom = max(node["pos"][1] + height(node) for node in nodes.values()) + _MARGIN
    style = (
        "text{font:13px sans-serif;fill:#e8e8ea}.title{font-weight:600}.value{fill:#a9adb5;font-size:12px}"
        ".box{fill:#33363d;stroke:#50545c}.own{fill:#2d4a43;stroke:#5fb39b;stroke-width:2}"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {right - left} {bottom - top}" role="img" '
        'aria-label="The nodes of the workflow and the links between them">',
        f"<style>{style}</style>",
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" rx="8" fill="#1e2024"/>',
        *(draw_link(link, nodes) for link in workflow["links"]),
        *(draw_node(node) for node in nodes.values()),
        "</svg>\n",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PICTURE.write_text(draw(json.loads(WORKFLOW.read_text())))
    print(PICTURE)
