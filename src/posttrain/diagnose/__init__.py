"""Looking before running: rows as the model will see them, what is odd in a data set, whether a run can work."""
