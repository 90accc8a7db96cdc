"""Hooks of the documentation site: vendored files, widgets, and a reference page for each part of the package.

Scripts, style sheets, and fonts that mkdocs.yml names under vendor/ come from docs/node_modules; mkdocstrings fills the
reference pages from the docstrings. Each page is checked: a reader's browser fetches nothing from elsewhere, and KaTeX
can typeset every formula.
"""

from __future__ import annotations

import csv
import html
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

MODULES = Path(__file__).parent / "node_modules"
PACKAGE = Path(__file__).parents[1] / "gpt2core"
# What a browser fetches by itself; a link that a reader may follow is none of this.
FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
FORMULA = re.compile(r'class="arithmatex">\\[(\[](.*?)\\[)\]]</', re.DOTALL)
ROOT = Path(__file__).parents[1]
TO_REPOSITORY = re.compile(r"(?<!!)\[([^][]*)\]\(((?:\.\./)[^)#]*)(?:#[^)]*)?\)")  # a link to a file that is no page
INSIDE = ROOT / "build" / "inside.html"  # from tools/docs/inside.py
STEPS = ROOT / "metrics" / "plots" / "pretrain.csv", ROOT / "metrics" / "samples.json"
URL = re.compile(r"url\(['\"]?([^'\")]+)['\"]?\)")


def parts() -> list[str]:
    """Return the modules and packages directly in `gpt2core`, except those that only have a command line."""
    names = {path.stem for path in PACKAGE.glob("[a-z]*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    return sorted(names - {"cli"})


def reference_page(name: str) -> str:
    """Return the page of a part; a package's page has each module once, and each name where it is defined."""
    folder = PACKAGE / name
    paths = sorted(folder.rglob("*.py")) if folder.is_dir() else []
    text = f"# gpt2core.{name}\n\n::: gpt2core.{name}\n"
    text += "    options: {members: false}\n" if paths else ""
    for path in paths:
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        if path.name == "__init__.py" and "def " in path.read_text(encoding="utf-8"):
            module = module.removesuffix("__init__").rstrip(".")
        if module and not module.endswith("__init__"):
            text += f"\n## {module}\n\n::: gpt2core.{name}.{module}\n"
    return text


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Change the configuration that MkDocs read from mkdocs.yml; MkDocs calls this."""
    reference = [{f"gpt2core.{name}": f"api/{name}.md"} for name in parts()]
    config.nav = [*(config.nav or []), {"Reference": reference}]
    return config


def with_what_it_names(path: Path) -> Iterator[Path]:
    """Yield a file, and the fonts that it names if it is a style sheet."""
    if not path.is_file():
        raise PluginError(f"{path} is missing; run: npm ci --prefix docs --ignore-scripts")
    yield path
    if path.suffix == ".css":
        for name in URL.findall(path.read_text(encoding="utf-8")):
            yield (path.parent / name).resolve()


def start_page() -> str:
    """Return the README as the site's first page: links to docs/ become links to pages."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((?!https?:|#)(?=[A-Z][\w./-]*\))", "](../", text)  # CONTRIBUTING.md, SECURITY.md, …


def inside() -> str:
    """Return the frame with the look inside a small model, or nothing if it was not made."""
    title = "Tokens and attention weights of a small model"
    return f'<iframe class="inside" src="../inside.html" title="{title}"></iframe>' if INSIDE.is_file() else ""


def training_steps() -> str:
    """Return a slider over the steps of the default pretraining, which site.js fills with loss and generated text."""
    rows = csv.DictReader(STEPS[0].read_text(encoding="utf-8").splitlines())
    losses = {int(row["tokens"]): (int(row["step"]), float(row["val_loss"])) for row in rows}
    samples = json.loads(STEPS[1].read_text(encoding="utf-8"))
    steps = [[*losses[sample["tokens"]], sample["text"]] for sample in samples]  # step, loss, text
    return (
        f'<div class="training-steps" data-steps="{html.escape(json.dumps(steps))}"><label>Training step '
        f'<input type="range" min="0" max="{len(steps) - 1}" value="0"></label> <output></output><p></p></div>'
    )


WIDGETS = {"<!-- inside -->": inside, "<!-- training steps -->": training_steps}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in widgets, and link to the repository's files if its address is known; MkDocs calls this."""
    for mark, widget in WIDGETS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, widget())

    def link(match: re.Match[str]) -> str:
        text, path = match[1], match[2]
        target = (ROOT / "docs" / page.file.src_uri).parent.joinpath(path).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: links to {path}, which does not exist")
        return f"[{text}]({config.repo_url}/blob/main/{target.relative_to(ROOT)})" if config.repo_url else text

    return TO_REPOSITORY.sub(link, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages to those that MkDocs found; MkDocs calls this."""
    for name in parts():
        files.append(File.generated(config, f"api/{name}.md", content=reference_page(name)))
    files.append(File.generated(config, "index.md", content=start_page()))
    if INSIDE.is_file():
        files.append(File.generated(config, "inside.html", abs_src_path=str(INSIDE)))
    logo = str(PACKAGE / "report/templates/logo.svg")
    files.append(File.generated(config, "assets/logo.svg", abs_src_path=logo))
    wanted = [str(name) for name in (*config.extra_css, *config.extra_javascript)]
    for name in wanted:
        if name.startswith("vendor/"):
            for path in with_what_it_names(MODULES.resolve() / name.removeprefix("vendor/")):
                uri = f"vendor/{path.relative_to(MODULES.resolve()).as_posix()}"
                if files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Change a page before MkDocs writes it; MkDocs calls this."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri}: would be fetched from elsewhere: {found.group()}")
    check_formulas(page.file.src_uri, [html.unescape(tex) for tex in FORMULA.findall(output)])
    return output


def check_formulas(name: str, formulas: list[str]) -> None:
    """Typeset formulas; raise PluginError with KaTeX's message if one has an error."""
    if not formulas:
        return
    script = "for (const tex of JSON.parse(require('fs').readFileSync(0))) require('katex').renderToString(tex)"
    command = ["node", "--eval", script]
    node = subprocess.run(command, cwd=MODULES.parent, input=json.dumps(formulas), capture_output=True, text=True)
    if node.returncode:
        said = next((line for line in node.stderr.splitlines() if "Error" in line), node.stderr)
        raise PluginError(f"{name}: {said}")
