"""The report of a run: `report.json`, `summary.txt` and `report.html`, all made from one `RunReport`."""

from pbd.report.files import json_safe, located, read, to_json, write
from pbd.report.text import render, summary

__all__ = ["json_safe", "located", "read", "render", "summary", "to_json", "write"]
