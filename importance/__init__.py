"""Importance criteria, one per file, imported as `graphprune.importance`."""

if __name__ != "graphprune.importance":
    # The folder stands at the top of the repository, so a shell opened there could import it under its bare
    # name. Every criterion would then exist twice, once per name, and isinstance checks would fail for no
    # visible reason.
    raise ImportError(
        f"expected this package as 'graphprune.importance', got 'import {__name__}', found at {__file__}. "
        "It is a part of graphprune: write 'from graphprune import importance' "
        "(in a checkout, run 'pip install -e .' once before).",
        name=__name__,
        path=__file__,
    )
