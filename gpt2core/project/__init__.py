"""New projects: a folder with the pipeline, small params, and example data, which runs the installed package."""
