"""Pages that open offline: one self-contained HTML file each, light and dark."""
