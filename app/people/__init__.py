"""People: users, their sign-ins, sessions and access tokens."""
