"""What a run says: its numbers as one JSON object, a table for the terminal, a self-contained page, figures."""
