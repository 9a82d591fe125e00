"""Draws what `analysis` found: for the terminal, as one HTML file that needs no network, and as pictures."""

from tuner.report.comparing import comparison_json, comparison_terminal
from tuner.report.comparing_page import comparison_html
from tuner.report.levels import level_table
from tuner.report.page import html
from tuner.report.pictures import pictures
from tuner.report.screen import terminal

__all__ = [
    "comparison_html",
    "comparison_json",
    "comparison_terminal",
    "html",
    "level_table",
    "pictures",
    "terminal",
]
