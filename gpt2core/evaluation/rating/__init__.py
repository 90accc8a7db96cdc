"""People's ratings of responses, and their statistics."""
