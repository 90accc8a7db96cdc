"""Figures of the stages' results. Each function writes one file, .svg or .png by its suffix.

The same input gives the same bytes.
"""
