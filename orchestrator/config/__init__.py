"""From a command line to a sweep that may start: composed, checked, data prepared."""
