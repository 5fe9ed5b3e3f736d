"""Sphinx: MyST pages, furo's look, API from docstrings."""

project = "Latticework"
author = "The Latticework authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "Latticework"
exclude_patterns = ["_build", "papers.toml"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False
# docstrings are plain text with ``literals``; what looks like other markup in them is not meant as such
suppress_warnings = ["docutils", "autodoc", "myst.header", "misc.highlighting_failure", "ref.python", "toc.not_included"]
nitpicky = False
