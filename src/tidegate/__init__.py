"""Tidegate: security building blocks for connected embedded-Linux devices, driven by one signed policy.

Each room (sub-package) is usable alone; read its docstring first. Nothing is imported here, so that
``import tidegate`` costs nothing: import the room that is meant.
"""

__version__ = "0.1.0"
