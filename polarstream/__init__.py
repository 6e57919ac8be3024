"""The application: command line, configuration, wiring."""
