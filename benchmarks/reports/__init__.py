"""Reports of results as HTML and Markdown."""
