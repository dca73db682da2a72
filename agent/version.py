"""The task agent's own version, SemVer 2; the package it is delivered in carries the same."""

VERSION = "0.1.0"
