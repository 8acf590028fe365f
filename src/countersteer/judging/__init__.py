"""Judging: where a response begins again, and how well each attempt answers its prompt, from text alone."""
