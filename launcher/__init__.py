"""The user's surface: command line, configuration, run folders and the controller of a job."""
