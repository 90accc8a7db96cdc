"""The flow of the forward pass and of the training step as Mermaid, SVG, and TikZ, from one description."""

from __future__ import annotations

from typing import NamedTuple

from pictures import COLORS, picture


class Node(NamedTuple):
    """A box at x (to the right) and y (downwards), in boxes."""

    text: str
    x: float
    y: float


class Edge(NamedTuple):
    """An arrow; a bent one goes around the boxes in between."""

    start: str
    end: str
    bent: bool = False


class Diagram(NamedTuple):
    """Boxes by name, arrows, and the boxes inside a frame with a title."""

    nodes: dict[str, Node]
    edges: tuple[Edge, ...]
    frame: tuple[str, ...]
    title: str


def chain(*names: str) -> tuple[Edge, ...]:
    """Return arrows from each box to the next."""
    return tuple(Edge(start, end) for start, end in zip(names, names[1:], strict=False))


FORWARD_PASS = Diagram(
    nodes={
        "ids": Node("ids [B, T]", -0.55, 0), "places": Node("positions 0 to T - 1", 0.55, 0),
        "tok": Node("token embedding [B, T, C]", -0.55, 1), "pos": Node("position embedding [T, C]", 0.55, 1),
        "sum": Node("+", 0, 2), "norm1": Node("layer norm", 0, 3), "att": Node("causal self-attention", 0, 4),
        "sum1": Node("+", 0, 5), "norm2": Node("layer norm", 0, 6), "ff": Node("feed-forward, C to 4C to C", 0, 7),
        "sum2": Node("+", 0, 8), "norm": Node("final norm", 0, 9), "head": Node("output layer, C to V", 0, 10),
        "logits": Node("logits [B, T, V]", 0, 11),
    },
    edges=(
        *chain("ids", "tok", "sum"), *chain("places", "pos", "sum"), *chain("sum", "norm1", "att", "sum1"),
        Edge("sum", "sum1", bent=True), *chain("sum1", "norm2", "ff", "sum2"), Edge("sum1", "sum2", bent=True),
        *chain("sum2", "norm", "head", "logits"),
    ),
    frame=("norm1", "att", "sum1", "norm2", "ff", "sum2"),
    title="block, L times",
)  # fmt: skip

TRAINING_STEP = Diagram(
    nodes={
        "batch": Node("batch: inputs and targets [B, T]", 0, -0.15), "forward": Node("forward: logits [B, T, V]", 0, 1),
        "loss": Node("cross-entropy with the targets", 0, 2), "backward": Node("backward: all gradients", 0, 3),
        "clip": Node("clip the gradient to norm 1", -0.1, 4), "rate": Node("learning rate", 0.85, 4),
        "adamw": Node("AdamW updates the parameters", 0, 5), "clear": Node("clear the gradients", 0, 6),
    },
    edges=(
        *chain("batch", "forward", "loss", "backward", "clip", "adamw", "clear"), Edge("rate", "adamw"),
        Edge("clear", "batch", bent=True),
    ),
    frame=("forward", "loss", "backward"),
    title="per micro-batch",
)  # fmt: skip

ATTENTION = Diagram(
    nodes={
        "x": Node("token vectors x [T, C]", 0, 0), "q": Node("queries", -0.7, 1), "k": Node("keys", 0, 1),
        "v": Node("values", 0.7, 1), "scores": Node("scores [T, T]", -0.35, 2),
        "mask": Node("mask the future", -0.35, 3), "softmax": Node("softmax: weights", -0.35, 4),
        "mix": Node("weighted sum of the values", 0, 5), "out": Node("output [T, D]", 0, 6),
    },
    edges=(
        *chain("x", "q", "scores"), *chain("x", "k", "scores"), *chain("x", "v", "mix"),
        *chain("scores", "mask", "softmax", "mix", "out"),
    ),
    frame=("q", "k", "v"),
    title="three projections",
)  # fmt: skip

LORA = Diagram(
    nodes={
        "x": Node("input x, n numbers", 0, 0), "W": Node("weight W: frozen", -0.5, 1.5),
        "A": Node("A: n to r numbers", 0.5, 1), "B": Node("B: r to m numbers", 0.5, 2), "sum": Node("+", 0, 3),
        "y": Node("output, m numbers", 0, 4),
    },
    edges=(*chain("x", "W", "sum"), *chain("x", "A", "B", "sum"), *chain("sum", "y")),
    frame=("A", "B"),
    title="trained adapter",
)  # fmt: skip

AROUND = -0.88  # x of the bent arrows
DIAGRAMS = {"forward-pass": FORWARD_PASS, "training-step": TRAINING_STEP, "attention": ATTENTION, "lora-adapter": LORA}


def mermaid(diagram: Diagram) -> str:
    """Return the Mermaid source; Mermaid places the boxes itself."""

    def box(name: str) -> str:
        text = diagram.nodes[name].text
        return f'{name}(("{text}"))' if text == "+" else f'{name}["{text}"]'

    outside = [f"    {box(name)}" for name in diagram.nodes if name not in diagram.frame]
    inside = [f"        {box(name)}" for name in diagram.frame]
    arrows = [f"    {edge.start} --> {edge.end}" for edge in diagram.edges]
    frame = [f'    subgraph frame ["{diagram.title}"]', *inside, "    end"]
    return "\n".join(["flowchart TB", *outside, *frame, *arrows]) + "\n"


def tikz(diagram: Diagram) -> str:
    """Return a LaTeX document for `pdflatex`."""
    lines = [
        r"\documentclass{article}",
        r"\usepackage{tikz}",
        r"\pagestyle{empty}",
        r"\usetikzlibrary{arrows.meta, fit}",
        r"\begin{document}",
        r"\begin{tikzpicture}[x=52mm, y=-12mm, box/.style={draw, rounded corners=1mm, inner sep=2mm}, >={Stealth}]",
        *(
            rf"  \node[{'box, circle, inner sep=0.6mm' if node.text == '+' else 'box'}] ({name}) "
            rf"at ({node.x:g}, {node.y:g}) {{{node.text}}};"
            for name, node in diagram.nodes.items()
        ),
        rf"  \node[draw, dashed, inner xsep=14mm, inner ysep=3mm, label=right:{{{diagram.title}}},",
        rf"    fit={''.join(f'({name})' for name in diagram.frame)}] {{}};",
        *(rf"  \draw[->] ({edge.start}) -- {_around(diagram, edge)}({edge.end});" for edge in diagram.edges),
        r"\end{tikzpicture}",
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"


def corners(diagram: Diagram, edge: Edge) -> list[tuple[float, float]]:
    """Return the corners of a bent arrow; one that goes down starts below its first box, so that no two touch."""
    start, end = diagram.nodes[edge.start], diagram.nodes[edge.end]
    if start.y < end.y:
        return [(start.x, start.y + 0.5), (AROUND, start.y + 0.5), (AROUND, end.y)]
    return [(AROUND, start.y), (AROUND, end.y)]


def _around(diagram: Diagram, edge: Edge) -> str:
    return "".join(f"({x:g}, {y:g}) -- " for x, y in corners(diagram, edge)) if edge.bent else ""


def svg(name: str) -> None:
    """Write `img/NAME.svg` in the working directory."""
    diagram = DIAGRAMS[name]
    lowest = max(node.y for node in diagram.nodes.values())
    with picture(name, (4.6, 0.55 * (lowest + 1))) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(-1.15, 1.15), ylim=(lowest + 0.5, -0.5))
        axes.axis("off")
        framed = [diagram.nodes[name] for name in diagram.frame]
        top, bottom = min(node.y for node in framed) - 0.62, max(node.y for node in framed) + 0.5
        left = -1.08 if min(node.x for node in framed) <= 0 else 0.02
        axes.plot([left, 1.08, 1.08, left, left], [top, top, bottom, bottom, top], "--", color=COLORS[-1], lw=0.8)
        axes.text(1.02, top, diagram.title, ha="right", va="center", color=COLORS[-1], backgroundcolor="white")
        style = dict(boxstyle="round,pad=0.35", facecolor="white", edgecolor=COLORS[0])
        boxes = {
            name: axes.text(node.x, node.y, node.text, ha="center", va="center", bbox=style, zorder=4)
            for name, node in diagram.nodes.items()
        }
        for edge in diagram.edges:
            start, end = diagram.nodes[edge.start][1:], diagram.nodes[edge.end][1:]
            patches = dict(patchB=boxes[edge.end].get_bbox_patch(), shrinkB=1)
            if edge.bent:
                points = corners(diagram, edge)
                axes.plot(*zip(start, *points, strict=True), color="black", lw=0.9, zorder=0)
                start = points[-1]
            else:
                patches |= dict(patchA=boxes[edge.start].get_bbox_patch())
            axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color="black", lw=0.9, **patches))
