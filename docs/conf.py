"""Settings of Sphinx, which `make site` runs over the pages that scripts/docs_site.py lays out. Every warning is an error there."""

project = "Tollway"
root_doc = "docs/README"
extensions = ["myst_parser"]  # reads Markdown

myst_heading_anchors = 6  # every heading is a target, by the name that GitHub gives it
highlight_language = "none"  # a block without a language is text

html_theme = "furo"  # loads nothing from other hosts
html_title = "Tollway"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
