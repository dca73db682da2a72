"""`python -m app.launch`: the whole Manager under one process in the foreground. What the parts do is theirs to say."""
