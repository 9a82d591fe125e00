"""Draws what `analysis` found: for the terminal, and as one HTML file that needs no network."""

from tuner.report.levels import level_table
from tuner.report.page import html
from tuner.report.screen import terminal

__all__ = ["html", "level_table", "terminal"]
