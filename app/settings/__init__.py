"""Settings that administrators change at run time. Reading them is the kernel's (`live_settings`)."""
