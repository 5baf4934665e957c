"""How a script starts: options, streams and exit codes."""
