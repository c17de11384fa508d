"""The dependency graph as others read it: networkx and GraphML, a DOT diagram, a page for the browser."""

from graphprune.views.diagram import dot
from graphprune.views.network import graphml, to_networkx
from graphprune.views.page import html

__all__ = ["dot", "graphml", "html", "to_networkx"]
