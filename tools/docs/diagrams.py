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
        "ids": Node("ids [B, T]", -0.6, 0), "places": Node("positions 0 to T - 1", 0.6, 0),
        "tok": Node("token embedding [B, T, C]", -0.6, 1), "pos": Node("position embedding [T, C]", 0.6, 1),
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
        "batch": Node("batch: inputs and targets [B, T]", 0, 0), "forward": Node("forward: logits [B, T, V]", 0, 1),
        "loss": Node("cross-entropy with the targets", 0, 2), "backward": Node("backward: a gradient a weight", 0, 3),
        "clip": Node("clip all gradients to length 1", 0, 4), "rate": Node("learning rate of this step", 1.3, 4),
        "adamw": Node("AdamW changes the weights", 0, 5), "clear": Node("forget the gradients", 0, 6),
    },
    edges=(
        *chain("batch", "forward", "loss", "backward", "clip", "adamw", "clear"), Edge("rate", "adamw"),
        Edge("clear", "batch", bent=True),
    ),
    frame=("forward", "loss", "backward"),
    title="once a micro-batch",
)  # fmt: skip

AROUND = -0.9  # x of the bent arrows
DIAGRAMS = {"forward-pass": FORWARD_PASS, "training-step": TRAINING_STEP}


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


def _around(diagram: Diagram, edge: Edge) -> str:
    """Return the two corners of a bent arrow."""
    if not edge.bent:
        return ""
    return "".join(f"({AROUND}, {diagram.nodes[name].y:g}) -- " for name in edge[:2])


def svg(name: str) -> None:
    """Write `img/NAME.svg` in the working directory."""
    diagram = DIAGRAMS[name]
    lowest = max(node.y for node in diagram.nodes.values())
    with picture(name, (6.0, 0.62 * (lowest + 1))) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(-1.4, 2.1), ylim=(lowest + 0.6, -0.6))
        axes.axis("off")
        framed = [diagram.nodes[name].y for name in diagram.frame]
        top, bottom = min(framed) - 0.42, max(framed) + 0.42
        axes.plot([-1, 1, 1, -1, -1], [top, top, bottom, bottom, top], "--", color=COLORS[-1], lw=0.8)
        axes.text(1.05, (top + bottom) / 2, diagram.title, va="center", color=COLORS[-1])
        style = dict(boxstyle="round,pad=0.35", facecolor="white", edgecolor=COLORS[0])
        boxes = {
            name: axes.text(node.x, node.y, node.text, ha="center", va="center", bbox=style)
            for name, node in diagram.nodes.items()
        }
        for edge in diagram.edges:
            (x0, y0), (x1, y1) = (diagram.nodes[name][1:] for name in edge[:2])
            patches = dict(patchB=boxes[edge.end].get_bbox_patch(), shrinkB=1)
            if edge.bent:  # under the boxes, whose white background hides it
                axes.plot([x0, AROUND, AROUND], [y0, y0, y1], color="black", lw=0.9, zorder=0)
                x0, y0 = AROUND, y1
            else:
                patches |= dict(patchA=boxes[edge.start].get_bbox_patch())
            axes.annotate("", (x1, y1), (x0, y0), arrowprops=dict(arrowstyle="-|>", color="black", lw=0.9, **patches))
