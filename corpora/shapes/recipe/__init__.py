"""Training recipe of the embedded models: `python -m corpora.shapes.recipe`, resumable at every stage."""
