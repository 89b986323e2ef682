"""How `make docs` builds the site: pages are Markdown, the reference is made of docstrings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "_extensions"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import plain_docstrings  # noqa: E402
import site_links  # noqa: E402

import cldfast  # noqa: E402

project = "cldfast"
author = "the cldfast developers"
copyright = author
version = release = cldfast.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.py.md5"]
html_theme = "furo"
html_title = f"cldfast {release}"
html_show_copyright = False
html_extra_path = ["../CITATION.cff"]

# Every page is checked: a link to a heading that is not there is an error of the strict build.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/[a-z_]+\\.py$",
    "within_subsection_order": "pictures.InOrder",
    "image_scrapers": ("matplotlib", "pictures.drawn"),
    "reset_argv": "pictures.arguments",
    "abort_on_example_error": True,
    "min_reported_time": 0,
    "show_memory": False,
    "download_all_examples": False,
    "show_signature": False,
}

# `make linkcheck` asks for the addresses outside; some publishers answer browsers only.
linkcheck_ignore = [r"https://doi\.org/.*"]
linkcheck_timeout = 20


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain_docstrings.process)
    app.connect("doctree-read", site_links.redirect)
