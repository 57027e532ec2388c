"""Using a trained model: terminal chat, answers from Python, completions of a dataset."""
