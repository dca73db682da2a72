"""The daemon plane's front door: who calls, the check-in, the held poll, reports and live samples."""
