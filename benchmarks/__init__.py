"""What the speed figures of the README come from. Nothing imports this package; run its programs from the project."""
