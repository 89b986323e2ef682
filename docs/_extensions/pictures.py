"""The gallery's pictures: what examples draw into files, and what they are run with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst

# The order of the pages.
ORDER = (
    "own_checkpoint", "conditional_digits", "inpainting", "denoiser_under_cld", "likelihood",
    "funnel", "compare_vp", "route", "ddp", "diffusers_pipeline",
)  # fmt: skip
OUT = Path(tempfile.mkdtemp())
# The examples that are commands, and with which arguments they run here.
ARGUMENTS = {
    # Each picture is drawn below the function that draws it, see `drawn`.
    "route": ["--out", str(OUT / "again"), "--only", "schedules"],
    "diffusers_pipeline": ["--out", str(OUT / "images.png")],
    "conditional_digits": ["60"],
}
_shown: set[str] = set()


class InOrder:
    """The key by which the pages of a folder are sorted."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, name: str) -> tuple[int, str]:
        stem = Path(name).stem
        return (ORDER.index(stem) if stem in ORDER else len(ORDER), stem)


def arguments(gallery_conf: dict[str, Any], script_vars: dict[str, Any]) -> list[str]:
    """The arguments of an example's command line."""
    return ARGUMENTS.get(Path(script_vars["src_file"]).stem, [])


def drawn(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """What a block has drawn into files; for the route, the pictures that the block defines."""
    from cldfast.lab.plots import new_figure, save

    files = []
    for name, (draw, size) in block_vars["example_globals"].get("PICTURES", {}).items():
        if name not in _shown:
            _shown.add(name)
            figure = new_figure(*size)
            draw(figure)
            files.append(Path(next(block_vars["image_path_iterator"])))
            save(figure, files[-1])
    for path in sorted(OUT.glob("*.png")):
        files.append(Path(next(block_vars["image_path_iterator"])))
        path.rename(files[-1])
    return figure_rst([str(path) for path in files], gallery_conf["src_dir"])
