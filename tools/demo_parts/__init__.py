"""What the demos on the command line and in the browser share."""
