"""The public inputs: registry, downloads, and the grammars that write the embedded ones."""
