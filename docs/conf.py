"""How Sphinx makes the site of this folder's pages: ``tox -e docs``.

The source folder is the repository's root, so that a link between two pages is the same in the
repository and on the site. What such a link leads to that isn't a page, such as an example or a
test, is made one by ``repository_files``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "docs" / "site"), str(ROOT)]

import freebsd_splice  # noqa: E402  # found by the line above

project = "freebsd-splice"
author = "the freebsd-splice authors"
project_copyright = author
release = version = freebsd_splice.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "contents",
    "public_names",
    "repository_files",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/reference/*.rst"]
exclude_patterns = [".*", "build", "dist", "venv", "**/node_modules"]

#: Names of ours that nothing describes are an error; those of Python's library, and of type
#: variables and aliases in private modules, lead nowhere.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!freebsd_splice\b)\S+|freebsd_splice\.(\w+\.)*_.*")]

#: Pygments knows HAProxy's language by no name.
lexers["haproxy"] = TextLexer()

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin its facts at the third level

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the fields of a record are described once, in its docstring
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "freebsd-splice"
html_extra_path = ["site/index.html"]  # the address without a page
html_show_sphinx = False
html_copy_source = False
html_static_path = ["site/static"]
html_css_files = ["site.css"]
