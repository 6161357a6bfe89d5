"""The doctor: checks of a machine and of the models that a run needs."""
