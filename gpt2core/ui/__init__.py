"""A page in the browser to try the models: generate, classify, respond, look inside. Needs the extra `ui`."""
