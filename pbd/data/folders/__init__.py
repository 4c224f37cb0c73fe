"""Data sets that are folders of image files: their layout, their classes, and the check of the files."""

from pbd.data.folders.file_check import check_files
from pbd.data.folders.reading import load_folder

__all__ = ["check_files", "load_folder"]
