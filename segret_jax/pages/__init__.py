"""Web pages: templates of Jinja, one stylesheet and its scripts, for every page that is written."""
