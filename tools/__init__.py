"""Small programs behind the Makefile: checks and reports for developers, never imported by the product."""
