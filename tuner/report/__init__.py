"""Draws what `analysis` found: for the terminal, as one HTML file that needs no network, and as pictures."""

from tuner.report.levels import level_table
from tuner.report.page import html
from tuner.report.pictures import pictures
from tuner.report.screen import terminal

__all__ = ["html", "level_table", "pictures", "terminal"]
