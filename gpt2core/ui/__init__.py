"""Pages in the browser to try models and to rate responses. They need the extra `ui`."""
